"""How long a checkpoint keeps training waiting, synchronous and asynchronous: python -m benchmarks.checkpoint_stall

One process, the same model, in turns in one run; AdamW's moments included. The asynchronous checkpoint is waited for
before the next one begins, outside the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.base import Loss, Phase


class Sum:
    """An objective of one role, whose loss reaches every parameter."""

    def __init__(self, layers: int, width: int) -> None:
        stack = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
        self.roles = {"encoder": stack}

    def phases(self) -> list[Phase]:
        return [Phase("train", ("encoder",), "encoder")]

    def loss(self, phase: Phase, batch: dict[str, torch.Tensor]) -> Loss:
        return Loss(self.roles["encoder"](batch["x"]).square().sum(), {})


def stall(checkpoints: Checkpoints, step: int) -> float:
    """Seconds for which `save` does not return; what it left to the background is waited for afterwards."""
    begin = time.perf_counter()
    checkpoints.save(step, {"stream": {}})
    seconds = time.perf_counter() - begin
    checkpoints.finish()
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.checkpoint_stall --output benchmarks/results/checkpoint_stall.md",
    )  # fmt: skip
    parser.add_argument(
        "--layers", type=int, default=48, help="of 1,024 × 1,024 (default: 48, 50 M parameters)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table there too")
    arguments = parser.parse_args(argv)
    engine = DDPEngine(TrainConfig(), World())
    objective = Sum(arguments.layers, 1024)
    engine.prepare(objective, lambda _, roles: torch.optim.AdamW(  # type: ignore[arg-type]
        [{"params": [p for r in roles.values() for p in r.parameters()], "lr_ratio": 1.0}], fused=True))  # fmt: skip
    (phase,) = objective.phases()
    engine.backward(phase, {"x": torch.randn(8, 1024)}, 1e-3, last=True)
    engine.step(phase, 1.0, None)
    waits: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats + 1):
            for asynchronous, measured in waits.items():
                config = CheckpointConfig(asynchronous=asynchronous, keep=1)
                seconds = stall(Checkpoints(Path(folder), engine, config), 2 * repeat + asynchronous)
                if repeat:  # the first one takes its buffers from the system
                    measured.append(seconds)
    wait, stalled = statistics.median(waits[False]), statistics.median(waits[True])
    size = 3 * 4 * sum(p.numel() for p in objective.roles["encoder"].parameters()) / 2**20
    report = "\n".join([
        f"# How long a checkpoint of {size:,.0f} MiB keeps training waiting ({os.cpu_count()} cores)", "",
        "| checkpoint | median wait | share |", "| --- | ---: | ---: |",
        f"| synchronous | {wait:.3f} s | 100 % |",
        f"| asynchronous | {stalled:.3f} s | {100 * stalled / wait:.1f} % |", "",
        f"{arguments.repeats} of each, in turns in one run; checksums and fsync included.", "",
    ])  # fmt: skip
    print(report)
    if arguments.output:
        arguments.output.write_text(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
