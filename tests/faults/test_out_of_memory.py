"""Running out of memory ends the run in one line that says what to lower, and costs nothing that was saved."""

from __future__ import annotations

import re

import pytest

from pretrain.checkpoint.folder import newest_valid
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *SMALL, "checkpoint.every=2", "tracking.log_every=1",
    *QUIET, "schedule.warmup_ratio=0", "train.global_batch_size=2048",
    "data.workers=0",  # a thread's own arena of memory would blur the limit
]  # fmt: skip
pytestmark = pytest.mark.slow


def with_memory(mebibytes, arguments, begin="train_step", expect=2):
    """Run with so much more memory than there is in use when the trainer begins to do something for the first time."""
    return run("tests.faults.limited_memory", [str(mebibytes), begin, *arguments], expect=expect)


def test_it_says_what_to_lower_and_nothing_saved_is_lost(tmp_path):
    run("pretrain", [*SETTINGS, f"run_dir={tmp_path}", "train.steps=4", "train.micro_batch_size=64"])
    before = losses(tmp_path)
    (tmp_path / "checkpoints" / "step_00000004").rename(tmp_path / "gone")
    settings = [*SETTINGS, f"run_dir={tmp_path}", "train.steps=4"]
    result = with_memory(80, settings)
    assert "Traceback" not in result.stderr
    assert re.search(r"error: step 3: out of memory \([\d.]+ MiB more asked for\)", result.stderr)
    assert "set train.micro_batch_size=1024 (now 2048; the result stays the same)" in result.stderr
    checkpoint, broken = newest_valid(tmp_path / "checkpoints")
    assert (checkpoint.name, broken) == ("step_00000002", [])
    with_memory(8000, [*settings, "train.micro_batch_size=64"], expect=0)
    assert losses(tmp_path)[4]["loss"] == before[4]["loss"]


def test_memory_that_a_worker_lacks_is_told_as_such(tmp_path):
    settings = [*SETTINGS, f"run_dir={tmp_path}", "train.steps=4", "data.workers=2"]
    result = with_memory(80, settings, "run_steps")
    assert "Traceback" not in result.stderr
    assert re.search(r"error: step 1: out of (host )?memory", result.stderr)


def test_a_dry_run_finds_it(tmp_path):
    result = with_memory(80, [*SETTINGS, f"run_dir={tmp_path / 'run'}", "--dry-run"])
    assert "error: step 1: out of memory" in result.stderr
    assert not any(tmp_path.iterdir())


def test_it_is_one_line_outside_of_steps_too(tmp_path):
    """Where a thread of its own cannot be started, for memory or the number of threads is limited."""
    result = with_memory(0, [*SETTINGS, f"run_dir={tmp_path}", "train.steps=4"], "resume")
    assert "Traceback" not in result.stderr
    assert re.search(r"error: out of host memory|error: no more threads can be started", result.stderr)
