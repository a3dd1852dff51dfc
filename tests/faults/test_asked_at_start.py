"""A run that is asked to stop before its first step ends as one that is asked later, and has nothing to save."""

from __future__ import annotations

import json

import pytest

from pretrain.checkpoint.folder import complete
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=8", "train.steps=2", "checkpoint.every=1", "tracking.log_every=1",
    *QUIET,
]  # fmt: skip
ASKED = "hooks=['tests.faults.asked_at_start:AskedAtStart']"


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "status"), [(1, 75), (2, 1)], ids=["alone", "one of two, by its launcher"])
def test_it_ends_before_the_first_step_and_waits_to_be_started_again(tmp_path, ranks, status):
    ended = run("pretrain", [*SETTINGS, f"run_dir={tmp_path}", ASKED], ranks, expect=status)
    assert ended.stdout.count("stopped as asked, before the first step") == 1
    assert "Traceback" not in ended.stderr
    if ranks > 1:
        assert "ended with 75" in ended.stderr
    assert (tmp_path / "requeue").read_text() == "0\n"
    assert not complete(tmp_path / "checkpoints")
    assert not losses(tmp_path)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds[-1] == "preempted"


@pytest.mark.slow
def test_a_run_that_goes_on_and_is_asked_at_once_stays_where_it_was(tmp_path):
    run("pretrain", [*SETTINGS, f"run_dir={tmp_path}"])
    more = ["--allow-changes", "train.steps", "train.steps=4"]
    ended = run("pretrain", [*SETTINGS, *more, f"run_dir={tmp_path}", ASKED], expect=75)
    assert "stopped as asked, after step 2, and saved" in ended.stdout
    assert (tmp_path / "requeue").read_text() == "2\n"
    assert sorted(losses(tmp_path)) == [1, 2]
