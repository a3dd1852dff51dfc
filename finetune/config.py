"""The configuration of a fine-tuning job: the same schema, recipes and `key=value` as pretraining."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from data_tools.errors import UserError
from data_tools.schema import build_section
from finetune.labels import LabelledDataConfig
from finetune.tasks import task_class
from pretrain.config.load import merge, resolve
from pretrain.config.rate_rule import resolve_rates
from pretrain.config.sections import TrainConfig
from pretrain.optim.config import OptimizerConfig, ScheduleConfig, check_optimizer, check_schedule

RECIPES = Path(__file__).parent / "recipes"
Method = Literal["full", "scratch", "linear", "knn"]


@dataclass(frozen=True)
class ProtocolConfig:
    """What is compared, on how many labels, how often."""

    methods: tuple[Method, ...] = ("full", "scratch", "linear", "knn")
    """`full` trains every weight, `scratch` does so from a fresh start with the same budget, `linear` and `knn` leave
    the encoder as it is and stand beside the untrained encoder and (kNN) the raw input."""
    labels_per_class: tuple[PositiveInt, ...] | None = None
    """Low-label draws of these sizes; without it, every label is used once."""
    draws: PositiveInt = 10
    """Class-balanced draws of each size; the result is their mean and standard deviation."""
    neighbours: PositiveInt = 10
    """kNN's k, or all training samples where those are fewer."""


@dataclass(frozen=True)
class Config:
    """One fine-tuning job, whole. `task` is checked against the schema that its `name` selects."""

    task: Any
    encoder: str | None = None
    """A released folder, a run folder, or a `transformers` folder."""
    name: str = "finetune"
    out: str | None = None
    """Where results are written; default `runs/finetune_<name>`."""
    seed: int = 0
    data: LabelledDataConfig = LabelledDataConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    scratch: dict[str, Any] | None = None
    """What differs when training from scratch, e.g. `{optimizer: {lr: 1e-3}}`; its budget is always the same."""
    by_labels: dict[int, dict[str, Any]] | None = None
    """What differs at a number of labels a class, e.g. `{10: {train: {steps: 100}}}`."""

    @property
    def folder(self) -> Path:
        return Path(self.out) if self.out else Path("runs") / f"finetune_{self.name}"

    def for_run(self, method: str, labels_per_class: int | None) -> Config:
        """The settings of one training run, its differences applied."""
        values = asdict(self)
        for over in (
            (self.by_labels or {}).get(labels_per_class or 0),
            self.scratch if method == "scratch" else None,
        ):
            values = merge(values, over or {}, Config)
        return build_config({**values, "scratch": None, "by_labels": None})


def load_config(recipe: str, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """A job's configuration, resolved as `pretrain.config.load.load_config` resolves a run's."""
    values, origin = resolve(recipe, RECIPES, overrides, Config)
    return build_config(values), origin


def build_config(values: dict[str, Any]) -> Config:
    """Validate a mapping into a `Config`."""
    task = values.get("task")
    if isinstance(task, str):
        task = {"name": task}
    if not isinstance(task, dict) or "name" not in task:
        raise UserError("task: missing; a recipe says e.g. `task: {name: image_classification}`")
    section = build_section(task_class(task["name"]).Config, task, "task")
    config: Config = resolve_rates(build_section(Config, {**values, "task": section}, ""))
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a `UserError` for values that are well-typed but wrong or contradict each other."""
    protocol, train = config.protocol, config.train
    if (train.steps is None) == (train.epochs is None):
        raise UserError("train.steps and train.epochs: give exactly one of them")
    check_schedule(config.schedule, train.steps)
    check_optimizer(config.optimizer, config.schedule)
    if train.batch_size_warmup:
        raise UserError("train.batch_size_warmup: is for pretraining; leave it out")
    if train.hang_timeout is not None:
        raise UserError(f"train.hang_timeout={train.hang_timeout:g}: is for pretraining; leave it out")
    for key, chosen in (("methods", protocol.methods), ("labels_per_class", protocol.labels_per_class)):
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
            raise UserError(f"protocol.{key}={list(chosen)}: name at least one, and each once")
    if "train" in (config.scratch or {}):
        raise UserError(
            "scratch.train: from scratch has the same budget; give another optimizer or task only"
        )
    if not config.data.train:
        raise UserError(
            "data.train: missing; name the labelled samples to learn from, e.g. data.train=shards/"
        )
    if not 0 < config.data.holdout < 1:
        raise UserError(f"data.holdout={config.data.holdout}: must lie between 0 and 1")
    bins = config.data.label_bins
    if bins is not None and (not bins or list(bins) != sorted(set(bins))):
        raise UserError(f"data.label_bins={list(bins)}: needs at least one boundary, rising")
    for labels in config.by_labels or {}:
        if labels not in (protocol.labels_per_class or ()):
            raise UserError(f"by_labels.{labels}: protocol.labels_per_class has no {labels}")
    if config.scratch or config.by_labels:
        for size in protocol.labels_per_class or (None,):
            try:
                config.for_run("scratch", size)
            except UserError as error:
                place = " and ".join(name for name in ("scratch", "by_labels") if getattr(config, name))
                raise UserError(f"{place}: {error}") from None


def with_pooling(encoder_config: Any, pooling: str | None) -> Any:
    """An encoder's settings with the pooling that a task asks for (None: the encoder's own)."""
    if pooling is None or pooling == getattr(encoder_config, "pooling", None):
        return encoder_config
    if not hasattr(encoder_config, "pooling"):
        raise UserError(
            f"task.pooling={pooling!r}: encoder {encoder_config.name!r} has no choice of pooling; leave it out"
        )
    return build_section(type(encoder_config), asdict(replace(encoder_config, pooling=pooling)), "task")
