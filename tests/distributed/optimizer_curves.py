"""Under torchrun: every optimizer on the engines of this number of processes, one after the other.

Example: torchrun --standalone --nproc-per-node 2 -m tests.distributed.optimizer_curves folder
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from pretrain.engine.base import World
from tests.distributed.curves import curve

SAVED_AT = 4
MAE = ("mae", "encoder.intermediate_size=5")
"""Five rows are 3 + 2 on two ranks, and 2 + 2 + 1 + 0 on four: uneven and empty shards."""
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw": (*MAE, "optimizer.lr=0.01"),
    "muon": (*MAE, "optimizer.name=muon", "optimizer.lr=0.01"),
    "muon_twice": ("hard_without_penalty", "optimizer.name=muon"),
    "muon_once": (*MAE, "optimizer.name=muon", "optimizer.lr=0.01",
                  "optimizer.rules=[{match: 'decoder.*.fc2.weight', use: muon}, {match: '*', use: adamw}]"),
    "lamb": (*MAE, "optimizer.name=lamb", "optimizer.lr=0.03"),
    "lars": (*MAE, "optimizer.name=lars", "optimizer.lr=3"),
    "schedule_free": (*MAE, "optimizer.name=schedule_free", "optimizer.lr=0.01", "schedule.name=constant"),
}  # fmt: skip
"""By name: the case of `curves.CASES`, and how it is trained. `muon_twice` has two optimizers and tied weights;
`muon_once` a single matrix for it, so that most ranks have none to work on."""
ENGINES: dict[str, tuple[int, tuple[str, ...], list[str]]] = {
    "ddp-2": (2, ("muon", "lamb", "lars", "schedule_free"), ["engine=ddp"]),
    "fsdp-2": (2, ("muon", "lamb", "lars", "schedule_free", "muon_twice"), ["engine=fsdp"]),
    "fsdp-4": (4, ("muon", "muon_once", "lamb"), ["engine=fsdp"]),
    "hsdp-2x2": (4, ("muon", "lamb"), ["engine=fsdp", "fsdp.hsdp=2"]),
}
"""Processes, optimizers and settings, by name."""
SAVING = "fsdp-2"


def train(optimizer: str, overrides: list[str], checkpoints: Path | None = None) -> list[dict[str, float]]:
    case, *own = OPTIMIZERS[optimizer]
    saving = [f"checkpoint.every={SAVED_AT}", "checkpoint.asynchronous=false"]
    return curve(case, [*own, *overrides, *saving], checkpoints)


def main(folder: Path) -> None:
    """Write every curve to `curves.json`, and the checkpoints of one engine."""
    torch.set_num_threads(1)
    world = World.from_environment()
    curves: dict[str, dict[str, list[dict[str, float]]]] = {}
    for engine, (processes, optimizers, overrides) in ENGINES.items():
        if processes == world.size:
            for optimizer in optimizers:
                saved = folder / optimizer if engine == SAVING else None
                curves.setdefault(engine, {})[optimizer] = train(optimizer, overrides, saved)
    if world.rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))
    time.sleep(0.2)  # as `Engine.close` does
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
