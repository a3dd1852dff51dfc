"""A checkpoint that the disk does not take costs only itself: not the one before it, and the run only if asked."""

from __future__ import annotations

import json
import shutil

import pytest

from pretrain.checkpoint.folder import complete, newest_valid
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=16", "checkpoint.every=2", "tracking.log_every=1", "train.steps=6",
    *QUIET, "schedule.warmup_ratio=0",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run("pretrain", [*SETTINGS, f"run_dir={folder}", "checkpoint.keep=9"])
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """A run of which the checkpoint after step 2 is left, and the disk is full."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for step in (4, 6):
        (folder / "checkpoints" / f"step_{step:08d}").rename(folder / f"gone_{step}")
    return folder


def go_on(folder, processes, *overrides, expect=None):
    arguments = ["60000", *SETTINGS, f"run_dir={folder}", *overrides]
    return run("tests.faults.limited_files", arguments, processes, expect)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_run_stops_and_the_checkpoint_before_is_intact(stopped, processes):
    result = go_on(stopped, processes)
    assert "step_00000004: the checkpoint could not be written" in result.stderr
    assert "checkpoint.on_failure=warn" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert newest_valid(stopped / "checkpoints")[0] == stopped / "checkpoints" / "step_00000002"
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [
        "step_00000002"
    ]  # nothing half-written


def test_the_run_goes_on_where_that_is_asked_for(stopped):
    go_on(stopped, 1, "checkpoint.on_failure=warn", expect=0)
    assert sorted(losses(stopped)) == [1, 2, 3, 4, 5, 6]
    told = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if line["kind"] == "checkpoint_failed"] == [4, 6]
    assert [path.name for path in complete(stopped / "checkpoints")] == ["step_00000002"]
