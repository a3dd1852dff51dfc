"""Under torchrun: whole runs of several objectives one after the other, because starting processes takes the longest.

A folder is written with the step after which its runs stop, if they do.
Example: torchrun --standalone --nproc-per-node 2 -m tests.distributed.chain runs,other_runs@4 mae,gan engine=fsdp
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.config.load import load_config
from pretrain.run.run import run
from tests.cases import CASES
from tests.processes import QUIET

STEPS, EVERY = 12, 3
COMMON = [f"train.steps={STEPS}", "train.global_batch_size=16", f"checkpoint.every={EVERY}", "checkpoint.keep=9",
          "tracking.log_every=1", *QUIET,
          "schedule.warmup_ratio=0.2"]  # fmt: skip


def main(folders: str, cases: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # one group for all runs
    for folder, case in itertools.product(folders.split(","), cases.split(",")):
        recipe, *own = CASES[case]
        place, _, stop = folder.partition("@")
        config, _ = load_config(recipe, [*COMMON, *own, f"run_dir={Path(place) / case}", *overrides])
        run(config, stop_at=int(stop) if stop else None)
    if dist.is_initialized():
        time.sleep(0.2)  # as `Engine.close` does
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
