"""`--stop-at`: a run that stops after a step and goes on is the run that never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.load import load_config
from pretrain.guards.preemption import REQUEUE_WISH
from pretrain.run.run import run
from tests.processes import QUIET, losses
from tests.tiny_run import SMALL


@pytest.mark.slow
def test_stopping_at_a_step_and_going_on_changes_no_loss(tmp_path: Path) -> None:
    def config(name: str) -> object:
        settings = [*SMALL, *QUIET, "train.steps=6", "train.global_batch_size=8", "tracking.log_every=1"]
        return load_config("mae_digits", [*settings, f"run_dir={tmp_path / name}"])[0]

    whole = run(config("whole"))  # type: ignore[arg-type]
    assert whole.finished
    for _ in range(2):  # the second has nothing to do
        stopped = run(config("parts"), stop_at=3)  # type: ignore[arg-type]
        assert (stopped.finished, stopped.steps, stopped.status) == (False, 3, 0)
    assert not (tmp_path / "parts" / REQUEUE_WISH).exists(), "nobody is to start it again at once"
    assert run(config("parts"), stop_at=9).finished  # type: ignore[arg-type]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
