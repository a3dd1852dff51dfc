"""A run, from its configuration to its report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_tools.dataset import Dataset, open_dataset
from data_tools.loader import Loader
from data_tools.stream import PackedStream, Stream
from pretrain.checkpoint import Checkpoints
from pretrain.config import Config, check_world_size, to_dict
from pretrain.encoders import encoder_class
from pretrain.engine import start_engine
from pretrain.engine.base import Engine, World
from pretrain.objectives import objective_class
from pretrain.objectives.base import Objective
from pretrain.optim import build_optimizer
from pretrain.probes import OnlineProbe
from pretrain.run_folder import RunFolder
from pretrain.tracking import Tracker
from pretrain.tracking.report import write_report
from pretrain.trainer import Hook, Tracks, Trainer, seed_of

PICTURE_SAMPLES = 8


@dataclass(frozen=True)
class Result:
    """What a finished run left."""

    folder: Path
    steps: int


def run(config: Config) -> Result:
    """Pretrain as `config` says, from the newest checkpoint of its folder if there is one. Call on every rank.

    Raises:
        UserError: settings or data are wrong; nothing has been started then.
    """
    check_world_size(config, World.from_environment().size)
    dataset = open_dataset(config.data.path)
    objective = build_objective(config, dataset)
    total_steps = count_steps(config, dataset)
    engine = start_engine(config)
    try:
        train(config, objective, dataset, engine, total_steps)
    finally:
        engine.close()
    return Result(config.folder, total_steps)


def build_objective(config: Config, dataset: Dataset) -> Objective:
    """Encoder and objective with the weights that the seed gives, the same on every rank."""
    torch.manual_seed(seed_of(config.seed, "weights"))
    encoder = encoder_class(config.encoder.name)(config.encoder, dataset)
    return objective_class(config.objective.name)(config.objective, encoder, dataset)


def build_stream(config: Config, dataset: Dataset) -> Stream | PackedStream:
    """The samples of the data set in this run's order; tokens packed into rows where a row length is set."""
    stream = Stream(dataset, seed=config.seed)
    return PackedStream(stream, length=config.data.sequence_length) if config.data.sequence_length else stream


def build_loader(config: Config, objective: Objective, dataset: Dataset, world: World) -> Loader:
    """This rank's share of every global batch."""
    return Loader(
        build_stream(config, dataset),
        objective.example,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        workers=config.data.workers,
        worker_kind=config.data.worker_kind,
        pin_memory=torch.cuda.is_available(),
    )


def count_steps(config: Config, dataset: Dataset) -> int:
    if config.train.steps is not None:
        return config.train.steps
    samples = (config.train.epochs or 0) * build_stream(config, dataset).samples_per_epoch
    return max(1, math.ceil(samples / config.train.global_batch_size))


def train(config: Config, objective: Objective, dataset: Dataset, engine: Engine, total_steps: int) -> None:
    """Everything between a started engine and a written report."""
    folder = RunFolder(config.folder)
    lead = engine.world.rank == 0
    try:
        run_id = engine.broadcast(folder.open(config) if lead else None)
        engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
        loader = build_loader(config, objective, dataset, engine.world)
        checkpoints = Checkpoints(folder.path / "checkpoints", engine, config.checkpoint.keep)
        trainer = Trainer(config, objective, loader, engine, total_steps, checkpoints=checkpoints)
        resumed = trainer.resume()
        if lead:
            trainer.tracker = Tracker(
                folder.path, config.tracking, to_dict(config), total_steps, run_id, trainer.step
            )
            if resumed is not None:
                trainer.tracker.event("resume", trainer.step, {"broken_checkpoints": resumed})
        trainer.hooks = build_hooks(config, objective, dataset, engine, trainer.tracker)
        fit(trainer)
        if lead:
            write_report(folder.path)
    finally:
        folder.close()


def fit(trainer: Trainer) -> None:
    """Train to the end, and tell the tracker how it ended."""
    started, status = time.perf_counter(), "failed"
    try:
        trainer.fit()
        status = "finished"
        if trainer.tracker:
            trainer.tracker.event("end", trainer.step, {"seconds": time.perf_counter() - started})
    finally:
        if trainer.tracker:
            trainer.tracker.close(status)


def build_hooks(
    config: Config, objective: Objective, dataset: Dataset, engine: Engine, tracker: Tracks | None
) -> tuple[Hook, ...]:
    """Pictures and probes, as often as the configuration asks for them."""
    hooks = [Hook(config.tracking.picture_every, picture_hook(config, objective, dataset, engine, tracker))]
    if config.probe.every:
        hooks.append(Hook(config.probe.every, probe_hook(config, objective, engine, tracker)))
    return tuple(hooks)


def picture_hook(
    config: Config, objective: Objective, dataset: Dataset, engine: Engine, tracker: Tracks | None
) -> Any:
    """Always the same samples with the same things hidden, so that pictures of different steps can be compared."""
    stream = build_stream(config, dataset)
    loader = Loader(stream, objective.example, seed=config.seed, global_batch_size=PICTURE_SAMPLES)
    batch = next(iter(loader)).micro_batches[0]
    on_device = {
        name: value.to(engine.device) for name, value in batch.items() if isinstance(value, torch.Tensor)
    }

    def hook(step: int) -> None:
        with engine.whole(), evaluating(objective):
            picture = objective.picture(on_device)
        if tracker and picture is not None:
            tracker.picture(step, picture)

    return hook


def probe_hook(config: Config, objective: Objective, engine: Engine, tracker: Tracks | None) -> Any:
    probe = OnlineProbe(config.probe)

    def hook(step: int) -> None:
        with engine.whole(), evaluating(objective):
            values = probe.measure(objective.encode, objective.view, engine.device)
        if tracker:
            tracker.probe(step, values)

    return hook


@contextmanager
def evaluating(objective: Objective) -> Iterator[None]:
    """No gradients, dropout off, and the random state as it was afterwards."""
    roles: list[nn.Module] = list(objective.roles.values())
    modes = [role.training for role in roles]
    for role in roles:
        role.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for role, mode in zip(roles, modes, strict=True):
            role.train(mode)
