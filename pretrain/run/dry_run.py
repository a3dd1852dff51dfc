"""`python -m pretrain RECIPE --dry-run`: two whole steps, pictures and probes, and nothing written.

What would end a job after hours in the queue and minutes to compile (no memory, code that does not compile, a probe's
data that are not there) ends this one at once.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from data_tools.storage.atomic import free_bytes
from data_tools.storage.objects import is_remote
from pretrain.checkpoint.targets import Copies
from pretrain.config.check import check_world_size
from pretrain.config.sections import Config
from pretrain.data import count_steps, first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import World
from pretrain.engine.closing import closing_engine
from pretrain.run.assemble import assemble_trainer
from pretrain.run.best_metric import check_keep_best
from pretrain.run.run import build_hooks, build_objective, shards_weights
from pretrain.weights.start import load_starting_weights

STEPS = 2
"""The first compiles and allocates optimizer states; the second is as all others will be."""


@dataclass(frozen=True)
class DryRun:
    """What some steps showed, usually two."""

    ranks: int
    seconds: tuple[float, ...]
    values: dict[str, float]
    """Of the last step, by name, as a run would log them."""
    parameters: int
    checkpoint_bytes: int
    free_bytes: int
    """On the disk that the run's folder is on, or would be."""
    peak_bytes: int | None
    """Of the device's memory on rank 0; None on a CPU."""

    def describe(self, config: Config) -> str:
        first, second = self.seconds
        loss = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        room = "" if self.room_for(config.checkpoint.keep + 1) else (
            f"\nwarning: {config.checkpoint.keep + 1} checkpoints, as many as there are while one replaces another, do "
            "not fit; make room, lower checkpoint.keep or choose another run_dir")  # fmt: skip
        memory = (
            "" if self.peak_bytes is None else f", at most {self.peak_bytes / 2**30:.2f} GiB of device memory"
        )
        return (
            f"dry run: {STEPS} steps of {config.train.global_batch_size} samples on {self.ranks} rank(s), "
            f"{self.parameters / 1e6:.1f} M parameters\n"
            f"first step {first:.2f} s, second {second:.2f} s{memory}; {loss}\n"
            f"a checkpoint has {self.checkpoint_bytes / 2**20:,.1f} MiB, {self.free_bytes / 2**20:,.0f} MiB are free "
            f"at {config.folder}{room}\n"
            "nothing was written; leave out --dry-run to start"
        )

    def room_for(self, checkpoints: int) -> bool:
        return checkpoints * self.checkpoint_bytes < self.free_bytes


def dry_run(config: Config, steps: int = STEPS, beside: bool = True) -> DryRun:
    """Take two steps of the largest batch from the starting weights, once a picture and a probe. Call on every rank.

    Args:
        steps: more or fewer of them.
        beside: whether what is done beside training is done: pictures, probes, held-out losses.
    Raises:
        UserError: whatever would stop the run: settings, data, memory.
    """
    config = replace(config, train=replace(config.train, batch_size_warmup=()))
    check_world_size(config, World.from_environment().size)
    Copies(config.checkpoint)  # refuses targets that nothing can write to
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), shards_weights(config))
    check_keep_best(config, objective)
    if is_remote(config.init_from or ""):  # nothing is downloaded either
        config = replace(config, init_from=None)
    parameters = sum(p.numel() for role in objective.roles.values() for p in role.parameters())
    total = count_steps(config, sources)
    engine = start_engine(config)
    with closing_engine(engine):
        trainer = assemble_trainer(
            config, objective, sources, engine, total, load=lambda: load_starting_weights(config, objective)
        )
        if beside:
            trainer.add_hooks(build_hooks(config, objective, sources, engine, tracker=None))
            trainer.run_hooks(initial=True)
        seconds, batches = [], iter(trainer.loader)
        with closing(trainer.loader):
            for _ in range(steps):
                started = time.perf_counter()
                trainer.train_step(trainer.take_batch(batches))
                values = trainer.reduce_values(after=trainer.step - 1)  # waits for the device
                seconds.append(time.perf_counter() - started)
        return DryRun(
            ranks=engine.world.size,
            seconds=tuple(seconds),
            values=values,
            parameters=parameters,
            checkpoint_bytes=engine.checkpoint_bytes(),
            free_bytes=free_bytes(config.folder),
            peak_bytes=torch.cuda.max_memory_allocated() if engine.device.type == "cuda" else None,
        )
