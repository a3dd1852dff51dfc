"""SIGKILL while a checkpoint is written, ten times in one run, which ends with the weights of an undisturbed one."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.folder import find_fault, newest_valid
from pretrain.release.release import load_run_encoder
from tests.processes import QUIET, kill, losses, run, start
from tests.tiny_run import SMALL

KILLS, STEPS = 10, 44
SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=16", "checkpoint.every=1", "tracking.log_every=1",
    f"train.steps={STEPS}", *QUIET,
]  # fmt: skip


def newest_partial(folder: Path, beyond: int) -> int:
    """The step of a checkpoint that is being written, if it lies beyond a step; else 0."""
    steps = [int(path.name.split("_")[1].split(".")[0]) for path in folder.glob(".step_*.partial")]
    return max((step for step in steps if step > beyond), default=0)


@pytest.mark.slow
def test_ten_kills_while_saving_cost_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("pretrain", [*SETTINGS, f"run_dir={whole}"])
    moments = random.Random(0)
    reached = 0
    for _ in range(KILLS):
        process = start("pretrain", [*SETTINGS, f"run_dir={killed}"])
        beyond, deadline = reached + moments.randint(1, 2), time.monotonic() + 120
        while not newest_partial(killed / "checkpoints", beyond):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        kill(process)
        valid, broken = newest_valid(killed / "checkpoints")
        assert not broken  # what has its final name is whole
        assert valid is not None
        reached = int(valid.name.split("_")[1])
        assert reached < STEPS
    run("pretrain", [*SETTINGS, f"run_dir={killed}"])
    assert losses(killed) == losses(whole)
    expected = load_run_encoder(whole).encoder.state_dict()
    found = load_run_encoder(killed).encoder.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert find_fault(killed / "checkpoints" / f"step_{STEPS:08d}") is None
    assert (killed / "metrics.jsonl").read_text().count('"kind": "resume"') == KILLS
