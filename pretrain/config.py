"""The typed configuration of a run: dataclasses are the schema, a recipe is YAML, `key=value` overrides it.

Precedence is command line > recipe > defaults. Parsing is PyYAML's safe loader, validation is pydantic's; nothing in
a recipe is ever executed or read from the environment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from data_tools.batch_sizes import BatchSizes
from data_tools.errors import UserError, nearest
from data_tools.remote import has_secrets, redacted
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.engine.config import DDPConfig, DeepSpeedConfig, FSDPConfig
from pretrain.optim.config import OptimizerConfig, ScheduleConfig, check_optimizer, check_schedule
from pretrain.schema import build_section, plain
from pretrain.tracking.config import TrackingConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataConfig:
    """Which shards, and how they become rows and batches."""

    path: str | dict[str, float] = "sample:digits"
    """A data set, or several with their weights: `{shards/a: 0.7, shards/b: 0.3}`. Weights may change when a run is
    started again; they hold from there on."""
    mix_by: Literal["sample", "token"] = "sample"
    """What the weights are shares of."""
    max_damage_rate: float = 0.01
    """Share of samples that may be damaged, and replaced by others, before the run stops."""
    sequence_length: int | None = None
    """Tokens in a row: token data sets are packed into full rows of this length."""
    workers: int = 0
    """Decoding workers of each rank; 0 decodes in the loader's own background thread."""
    worker_kind: Literal["thread", "process"] = "thread"

    @property
    def weights(self) -> dict[str, float]:
        """The data sets with their weights; one alone has all of it."""
        return dict(self.path) if isinstance(self.path, dict) else {self.path: 1.0}


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large the batch, in which precision."""

    steps: int | None = None
    epochs: float | None = None
    global_batch_size: int = 256
    batch_size_warmup: tuple[tuple[int, int], ...] = ()
    """Stages before it, each (global batch size, steps): [[64, 1000], [128, 1000]]. The learning rate follows its own
    schedule."""
    micro_batch_size: int | None = None
    """Samples of one rank in one forward pass; the rest is accumulated. Default: all of the rank's share."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "fp8"] = "fp32"
    """Of matrix products; weights and optimizer states stay fp32. tf32 and fp8 need a GPU that has them."""
    compile: Literal["none", "block", "whole"] = "none"
    """`torch.compile` each block (short to compile), or each role as a whole."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of keeping it: nothing, all but matrix products, or whole blocks."""
    attention: Literal["sdpa", "eager", "flex", "varlen"] | None = None
    """Attention back end of the `transformers` layers; default: the encoder's own choice (sdpa). `varlen` computes
    nothing between the documents of a row: with torch's flash kernel on a GPU, document by document elsewhere."""
    clip_grad_norm: float | None = None
    max_skipped_steps: int = 20
    """Updates left out in a row (a gradient that is not finite, or a spike) after which the run gives up."""
    spike_sigma: float | None = None
    """Leave out an update whose gradient norm lies so many deviations above the mean of the last 128 (OLMo-core: 6)."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the trained weights (.999, .9999): what pictures and probes look at, and
    what is released. None: no average."""
    hang_timeout: float | None = None
    """Seconds without progress after which every rank writes its stacks to RUN/stacks and ends; 0: never. Default: 0.8
    of the collectives' timeout, which is 600 s or `MASQUERADE_TIMEOUT`."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time on the same machine and set-up. Slower on a GPU."""

    @property
    def batch_sizes(self) -> BatchSizes:
        """The global batch size by position."""
        return BatchSizes(self.global_batch_size, self.batch_size_warmup)


@dataclass(frozen=True)
class ProbeConfig:
    """Online kNN and linear probes on the frozen encoder; off while `every` is 0."""

    every: int = 0
    train: str = "sample:digits"
    test: str = "sample:digits_test"
    label: str = "label"
    """The sample's field that holds the class, e.g. `label`, or `json.party` for a key of its JSON member."""
    train_samples: int = 2000
    test_samples: int = 1000
    neighbours: int = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, whole. `encoder` and `objective` are checked against the schema that their `name` selects."""

    name: str = "run"
    run_dir: str | None = None
    """Where everything of this run is written; default `runs/<name>`."""
    seed: int = 0
    engine: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    ddp: DDPConfig = DDPConfig()
    fsdp: FSDPConfig = FSDPConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    data: DataConfig = DataConfig()
    encoder: Any
    objective: Any
    init_from: str | None = None
    """A run folder, one of its checkpoints, or a URL in `checkpoint.targets` of a run (or a checkpoint there), whose
    weights a new run starts from; its own checkpoints come first."""
    allow_keys: tuple[str, ...] = ()
    """Patterns of tensors that `init_from` and `encoder.from_pretrained` may lack or hold in vain, e.g. `decoder.*`."""
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    optimizer_overrides: dict[str, dict[str, Any]] | None = None
    """Per optimizer of the objective, what differs from `optimizer`, e.g. `{discriminator: {lr: 4e-4}}`."""
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig = ProbeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def folder(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name

    def optimizer_for(self, name: str) -> OptimizerConfig:
        """The settings of one of the objective's optimizers."""
        own = (self.optimizer_overrides or {}).get(name, {})
        return build_section(
            OptimizerConfig, {**asdict(self.optimizer), **own}, f"optimizer_overrides.{name}"
        )


def load_recipe(recipe: str) -> tuple[dict[str, Any], str]:
    """The mapping in a recipe (a name from `pretrain/recipes`, or a path to a YAML file) and what to call it."""
    return read_recipe(recipe, RECIPES)


def read_recipe(recipe: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Find a recipe by its name in `folder` or by its path, and read it with the safe loader."""
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else folder / f"{recipe}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UserError(
            f"recipe {recipe!r}: no such recipe;{nearest(recipe, known)} known: {', '.join(known)}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return values, path.name


def parse_override(text: str) -> dict[str, Any]:
    """`train.steps=10` → `{"train": {"steps": 10}}`; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"{text!r} (command line): an override is written key=value, e.g. train.steps=100")
    try:
        node: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{text!r} (command line): the value is not valid YAML; quote it") from None
    for part in reversed(key.split(".")):
        node = {part: node}
    return node


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in place of its own, section by section; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another encoder or objective has other settings: those of the one it replaces do not carry over.
        renamed = both and "name" in value and merged[key].get("name", value["name"]) != value["name"]
        merged[key] = merge(merged[key], value) if both and not renamed else value
    return merged


def load_config(recipe: str, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """Resolve a run's configuration.

    Returns:
        The validated configuration, and for every dotted key that is not a default, where its value came from.
    Raises:
        UserError: an unknown recipe or key (with the nearest right one), a wrong type, a contradiction.
    """
    values, source = load_recipe(recipe)
    if "name" not in values:
        values = {**values, "name": Path(recipe).stem}
    origin = dict.fromkeys(flatten(values), source)
    for text in overrides:
        override = parse_override(text)
        values = merge(values, override)
        origin |= dict.fromkeys(flatten(override), "command line")
    return build_config(values), origin


def build_config(values: dict[str, Any]) -> Config:
    """Validate a mapping (a recipe, or a run folder's `config.yaml`) into a `Config`."""
    from pretrain.encoders import encoder_class
    from pretrain.objectives import objective_class

    values = dict(values)
    encoder = values.get("encoder")
    if isinstance(encoder, dict) and encoder.get("from_pretrained"):
        from pretrain.encoders.continued import settings_of_folder

        values["encoder"] = settings_of_folder(encoder)
    for section, find in (("objective", objective_class), ("encoder", encoder_class)):
        own = values.get(section)
        if not isinstance(own, dict) or "name" not in own:
            raise UserError(
                f"{section}: missing, or without a name; a recipe says e.g. `{section}: {{name: …}}`"
            )
        values[section] = build_section(find(own["name"]).Config, own, section)
    config = build_section(Config, values, "")
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a `UserError` for values that are well-typed but wrong or contradict each other."""
    train = config.train
    if (train.steps is None) == (train.epochs is None):
        raise UserError("train.steps and train.epochs: give exactly one of them")
    positive = {
        "train.steps": train.steps,
        "train.epochs": train.epochs,
        "train.global_batch_size": train.global_batch_size,
        "train.micro_batch_size": train.micro_batch_size,
        "train.clip_grad_norm": train.clip_grad_norm,
        "train.max_skipped_steps": train.max_skipped_steps,
        "train.spike_sigma": train.spike_sigma,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "checkpoint.target_patience": config.checkpoint.target_patience,
        "data.sequence_length": config.data.sequence_length,
    }
    for size, steps in train.batch_size_warmup:
        if size <= 0 or steps <= 0:
            raise UserError(f"train.batch_size_warmup: [{size}, {steps}]: give positive (batch size, steps)")
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        raise UserError(f"train.ema_decay={train.ema_decay}: must lie in (0, 1); null keeps no average")
    if train.hang_timeout is not None and train.hang_timeout < 0:
        raise UserError(f"train.hang_timeout={train.hang_timeout}: must not be negative; 0 switches it off")
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{key}={value}: must be greater than 0")
    if config.checkpoint.permanent_every % config.checkpoint.every:
        raise UserError(
            f"checkpoint.permanent_every={config.checkpoint.permanent_every}: must be a multiple of checkpoint.every="
            f"{config.checkpoint.every}"
        )
    refuse_secrets("init_from", config.init_from or "")
    for url in config.checkpoint.targets:
        refuse_secrets("checkpoint.targets", url)
    if not config.data.weights or any(weight <= 0 for weight in config.data.weights.values()):
        raise UserError("data.path: name at least one data set, each with a weight greater than 0")
    check_schedule(config.schedule, train.steps)
    check_optimizer(config.optimizer, config.schedule)
    optimizers = [config.optimizer]
    for name in config.optimizer_overrides or {}:
        optimizers.append(config.optimizer_for(name))
        check_optimizer(optimizers[-1], config.schedule, f"optimizer_overrides.{name}")
    if train.ema_decay is not None and any(optimizer.name == "schedule_free" for optimizer in optimizers):
        raise UserError(
            f"train.ema_decay={train.ema_decay}: schedule_free keeps an average of its own; leave train.ema_decay out"
        )


def refuse_secrets(key: str, url: str) -> None:
    """Raise a `UserError` for a URL with a password or signature, which would stand in `config.yaml`."""
    if has_secrets(url):
        raise UserError(
            f"{key}: {redacted(url)} comes with a password or signature; give it in the storage library's own way "
            "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
        )


def check_world_size(config: Config, world_size: int) -> None:
    """Raise a `UserError` when the ranks cannot share every global batch equally."""
    for batch in config.train.batch_sizes.all:
        final = batch == config.train.global_batch_size
        place = f"train.global_batch_size={batch}" if final else f"train.batch_size_warmup: {batch} samples"
        if batch % world_size:
            near = max(world_size, round(batch / world_size) * world_size)
            raise UserError(f"{place}: {world_size} ranks cannot share it equally; {near} would do")
        share = batch // world_size
        micro = min(config.train.micro_batch_size or share, share)
        if share % micro:
            raise UserError(
                f"train.micro_batch_size={micro}: does not divide a rank's share of {share} samples "
                f"({place}, {world_size} ranks); {largest_divisor(share, micro)} would do"
            )


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(n for n in range(min(number, at_most), 0, -1) if number % n == 0)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain values that YAML and JSON can hold, and `build_config` reads back."""
    return {key: plain(value) for key, value in asdict(config).items()}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        flat |= flatten(value, f"{dotted}.") if isinstance(value, dict) and value else {dotted: value}
    return flat


def format_config(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration as YAML, each value that is not a default marked with where it came from."""
    lines = []
    for line, dotted in yaml_lines(to_dict(config)):
        source = origin.get(dotted)
        lines.append(f"{line}  # {source}" if source else line)
    return "\n".join(lines)


def yaml_lines(values: dict[str, Any], prefix: str = "", indent: str = "") -> list[tuple[str, str]]:
    """Each line of block-style YAML with the dotted key it shows."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            lines.append((f"{indent}{key}:", dotted))
            lines.extend(yaml_lines(value, f"{dotted}.", f"{indent}  "))
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
            lines.append((f"{indent}{key}: {text}", dotted))
    return lines
