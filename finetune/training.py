"""One fine-tuning run and its evaluation, on the very trainer that pretrains."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.errors import UserError
from data_tools.schema import build_section
from data_tools.stream.evaluation import evaluation_batches
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from finetune.config import Config, with_pooling
from finetune.labels import Labelled
from finetune.tasks import task_class
from finetune.tasks.classification import Classification
from pretrain.config.sections import Config as TrainerConfig
from pretrain.encoders.base import Encoder
from pretrain.engine.base import Engine
from pretrain.objectives.base import Batch
from pretrain.optim.config import check_schedule
from pretrain.optim.groups import check_rules
from pretrain.release.release import load_run_encoder
from pretrain.run.assemble import prepare_engine
from pretrain.tracking.tracks import Tracks
from pretrain.trainer import Trainer
from pretrain.weights.from_transformers import load_encoder
from pretrain.weights.model_folder import ModelFolder

EVALUATION_BATCH = 256
PROBE_SAMPLES = 4096
"""Training samples, spread evenly, that a head is fitted to before fine-tuning."""
PROGRESS_LINES = 20
MEMORY = 512 * 2**20
"""Bytes of prepared test batches that are kept from one evaluation to the next."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder, and the means to build the same architecture anew."""

    encoder: Encoder
    source: Any
    """What supplied its vocabulary: the pretraining data set, or the released folder."""

    def copy(self) -> Encoder:
        return copy.deepcopy(self.encoder)

    def fresh(self, seed: int) -> Encoder:
        """The same architecture with the weights that `seed` gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return type(self.encoder)(self.encoder.config, self.source)


def open_pretrained(path: Path) -> Pretrained:
    """Read an encoder from a run folder, a release, or a `transformers` folder.

    Raises:
        UserError: none of these, or it cannot be opened.
    """
    if not path.is_dir():
        raise UserError(
            f"encoder={path}: no such folder; give a run or a release, e.g. encoder=runs/mae_digits"
        )
    if (path / "config.yaml").is_file():
        trained = load_run_encoder(path)
        return Pretrained(trained.encoder, trained.dataset)
    return Pretrained(load_encoder(path), ModelFolder(path))


def build_task(config: Config, encoder: Encoder, labelled: Labelled, seed: int) -> Classification:
    """The task's objective around `encoder`, its head as `seed` gives it."""
    encoder.config = with_pooling(encoder.config, config.task.pooling)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task_class(config.task.name)(config.task, encoder, labelled)


def train(
    config: Config,
    task: Classification,
    labelled: Labelled,
    engine: Engine,
    seed: int,
    progress: Tracks | None = None,
) -> None:
    """Train the task on all of `labelled` with the budget of `config`, without checkpoints and records.

    Args:
        progress: what is told of it, about `PROGRESS_LINES` times.
    """
    steps = count_steps(config, len(labelled))
    settings = build_section(
        TrainerConfig,
        {
            "objective": config.task,
            "encoder": task.encoder.config,
            "seed": seed,
            "train": config.train,
            "optimizer": config.optimizer,
            "schedule": config.schedule,
            "tracking": {"log_every": max(1, steps // PROGRESS_LINES)},  # on all ranks: a line sums over them
        },
        "",
    )
    check_rules(settings, task)
    if config.task.head_init == "probe":
        start_from_probe(task, labelled, engine)
    prepare_engine(settings, task, engine)
    loader = Loader(
        Stream(labelled.dataset, seed=seed),
        task.example,
        collate=task.collate,
        seed=seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=engine.world.rank,
        world_size=engine.world.size,
        node_size=engine.world.find_node_size(),
    )
    for role in task.roles.values():
        role.train()
    Trainer(settings, task, loader, engine, steps, tracker=progress).fit()
    engine.put_average()


def start_from_probe(task: Classification, labelled: Labelled, engine: Engine) -> None:
    """Let the head begin as the linear probe; every rank computes it from the same samples."""
    chosen = np.linspace(0, len(labelled) - 1, min(PROBE_SAMPLES, len(labelled))).astype(np.int64)
    samples = TestSet(labelled.select(chosen), task.encoder, rank=0, world_size=1)
    task.roles["head"].fit(*pooled_features(task, samples.batches(), engine))  # type: ignore[operator]


def count_steps(config: Config, samples: int) -> int:
    """Steps of a training run on so many samples.

    Raises:
        UserError: fewer than the schedule needs.
    """
    steps = config.train.steps
    if steps is None:
        steps = max(1, math.ceil((config.train.epochs or 0) * samples / config.train.global_batch_size))
    check_schedule(config.schedule, steps)
    return steps


class TestSet:
    """The test samples of one rank as batches, prepared once if they fit into memory."""

    __test__ = False  # not a test case, whatever pytest makes of its name

    def __init__(self, labelled: Labelled, encoder: Encoder, rank: int, world_size: int) -> None:
        self.labelled, self.encoder, self.rank, self.world_size = labelled, encoder, rank, world_size
        self.kept: list[Batch] | None = None

    def batches(self) -> list[Batch] | Any:
        """Whole samples as the encoder takes them, with their `class`."""
        if self.kept is not None:
            return self.kept
        first = self.example(self.labelled.dataset[0], None)
        size = sum(getattr(v, "nbytes", 8) for v in first.values()) * len(self.labelled) / self.world_size
        fresh = (
            batch
            for batch, _ in evaluation_batches(
                self.labelled.dataset,
                self.example,
                EVALUATION_BATCH,
                self.rank,
                self.world_size,
                collate=self.encoder.collate,
            )
        )
        if size > MEMORY:
            return fresh
        self.kept = list(fresh)
        return self.kept

    def example(self, sample: dict[str, Any], _rng: Any) -> Batch:
        return {**self.encoder.view(sample), "class": self.labelled.number(sample)}


def accuracy(task: Classification, test: TestSet, engine: Engine) -> float:
    """Share of the whole test set that is classified rightly; each sample counts once on any number of ranks."""
    tally = torch.zeros(2, dtype=torch.float64)
    with engine.evaluating(task):
        for batch in test.batches():
            logits = task.logits({name: value.to(engine.device) for name, value in batch.items()})
            right = (logits.argmax(1).cpu() == batch["class"]).sum()
            tally += torch.stack([right.double(), torch.tensor(float(len(logits)), dtype=torch.float64)])
    right, total = engine.sum(tally).tolist()
    return right / total


@torch.no_grad()
def pooled_features(task: Classification, batches: Any, engine: Engine) -> tuple[Tensor, Tensor]:
    """Pooled features (N, D) and class numbers (N,) of whole samples, on the CPU."""
    pooled, numbers = [], []
    task.encoder.to(engine.device)
    with engine.evaluating(task):
        for batch in batches:
            encoded = task.encode({name: value.to(engine.device) for name, value in batch.items()})
            pooled.append(encoded.pooled.float().cpu())
            numbers.append(batch["class"])
    return torch.cat(pooled), torch.cat(numbers)
