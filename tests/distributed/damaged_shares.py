"""Under torchrun, two ranks: each meets a damaged sample of its own; write what rank 0 tells of it.

torchrun --standalone --nproc-per-node 2 -m tests.distributed.damaged_shares OUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch.distributed as dist

from data_tools.dataset import dataset as module
from pretrain.engine.counts import StepCounts
from pretrain.objectives.base import Phase
from tests.distributed.curves import BATCH, Recorder, build_trainer
from tests.pretrain.test_exact_counts import MANY, Counting


class Teller(Recorder):
    """Keeps whole lines, and events."""

    def __init__(self):
        super().__init__()
        self.events = []

    def train(self, step, values):
        self.rows.append(values)

    def event(self, kind, step, values):
        self.events.append([kind, values["name"]])


def main(out: str) -> None:
    trainer = build_trainer("mae", ["train.steps=2"])
    trainer.tracker = Teller()
    stream = trainer.loader.stream
    keys = [stream.sample(position)["__key__"] for position in (0, BATCH - 1)]
    read = module.Dataset.read

    def damaged(self, shard, number, run=None):
        sample = read(self, shard, number, run)
        if sample["__key__"] in keys:
            raise module.DamagedSampleError("a.tar", sample["__key__"], "planted")
        return sample

    module.Dataset.read = damaged
    trainer.fit()
    rank = trainer.engine.world.rank
    phase = Phase("main", ("encoder",))
    batches = [{"count": MANY if rank == 0 else 1}]
    counts = StepCounts(trainer.engine.world, Counting(), [phase], batches, 2, asked_to_stop=False)
    found = {"keys": keys, "rows": trainer.tracker.rows, "events": trainer.tracker.events, "counts": counts.of(phase),
             "own": len(trainer.loader.ledger.entries)}  # fmt: skip
    Path(out, f"rank_{rank}.json").write_text(json.dumps(found, default=str))
    time.sleep(0.2)  # as `Engine.close` does
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
