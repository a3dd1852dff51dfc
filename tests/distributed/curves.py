"""Under torchrun: train tiny runs of several objectives one after the other on one engine, and write their losses.

One start of the processes serves every objective, because starting them takes longer than training them.
A case is written with its micro-batches a step.
Example: torchrun --standalone --nproc-per-node 2 -m tests.distributed.curves out.json mae/1,gan/4 engine=fsdp
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import World
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective
from pretrain.trainer import Trainer
from tests.cases import CASES

STEPS, BATCH = 8, 16
COMMON = [f"train.steps={STEPS}", f"train.global_batch_size={BATCH}", "tracking.log_every=1",
          "schedule.warmup_ratio=0.2", "train.clip_grad_norm=1.0", "train.precision=fp32"]  # fmt: skip
COMPARED = ("loss", "grad_norm", "position")


class Recorder:
    """A tracker that keeps what the curves are compared by."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def train(self, step, values):
        self.rows.append({k: v for k, v in values.items() if k.endswith(COMPARED)})

    def event(self, kind, step, values):
        pass


def build_trainer(case: str, overrides: list[str], checkpoints: Path | None = None) -> Trainer:
    """A trainer of a case, which keeps its rows in `tracker.rows` and its checkpoints where it is told to."""
    recipe, *own = CASES[case]
    config, _ = load_config(recipe, [*COMMON, *own, *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), deferred=config.engine == "fsdp")
    engine = start_engine(config)
    kept = None if checkpoints is None else Checkpoints(checkpoints, engine, config.checkpoint)
    return assemble_trainer(config, objective, sources, engine, config.train.steps, Recorder(), kept)


def curve(case: str, overrides: list[str], checkpoints: Path | None = None) -> list[dict[str, float]]:
    trainer = build_trainer(case, overrides, checkpoints)
    trainer.fit()
    trainer.tracker.rows[-1]["buffers"] = sum_buffers(trainer)
    return trainer.tracker.rows


def sum_buffers(trainer: Trainer) -> float:
    """Of all that training keeps beside weights (a batch norm's statistics), which every rank has."""
    roles = trainer.objective.roles.values()
    buffers = [b for role in roles for b in role.buffers() if b.is_floating_point()]
    total = float(sum(b.double().abs().sum() for b in buffers))
    assert set(trainer.engine.gather(total)) == {total}, "ranks differ"
    return total


def main(out: str, cases: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    world = World.from_environment()
    curves = {}
    for word in cases.split(","):
        case, _, cuts = word.partition("/")
        micro = BATCH // world.size // int(cuts)
        curves[word] = curve(case, [*overrides, f"train.micro_batch_size={micro}"])
    if world.rank == 0:
        Path(out).write_text(json.dumps(curves))
    if torch.distributed.is_initialized():
        time.sleep(0.2)  # as `Engine.close` does
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
