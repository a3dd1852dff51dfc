"""What W&B knows of a run that was preempted and went on, online or synchronised later: one run, each step once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.tracking import Tracker, TrackingConfig, WandbConfig
from tests.wandb_server import Run, wandb_server

KEY = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys
from pathlib import Path
from pretrain.tracking import Tracker, TrackingConfig, WandbConfig
settings = TrackingConfig(wandb=WandbConfig(mode=sys.argv[2]), progress=False)
for start, end, status in ((0, 9, "preempted"), (6, 12, "finished")):
    tracker = Tracker(Path(sys.argv[1]), settings, {"name": "x"}, 12, "run12345", start)
    for step in range(start + 1, end + 1):
        tracker.train(step, {"loss": 1.0 / step})
        if step % 3 == 0:
            tracker.validation(step, {"loss": 2.0 / step})
    tracker.close(status)
"""
pytestmark = pytest.mark.slow


def track(run_dir: Path, mode: str, url: str) -> dict[str, str]:
    """A run that is preempted after step 9 and goes on from its checkpoint of step 6; the environment of its client."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment = {**kept, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir), mode], check=True, timeout=150, env=environment
    )
    return environment


def assert_whole(run: Run) -> None:
    steps = [line["step"] for _, line in sorted(run.history.items()) if "train/loss" in line]
    assert steps == list(range(1, 13)), "each step once, in order"
    assert {line["step"]: line["validation/loss"] for line in run.history.values() if "validation/loss" in line} == {
        3: pytest.approx(2 / 3), 6: pytest.approx(2 / 6), 9: pytest.approx(2 / 9), 12: pytest.approx(2 / 12)
    }  # fmt: skip
    counters = [line["_step"] for _, line in sorted(run.history.items())]
    assert counters == sorted(set(counters))


def test_online_a_preempted_run_is_no_failed_one_and_goes_on_as_itself(tmp_path):
    with wandb_server() as service:
        track(tmp_path, "online", service.url)
        (run,) = service.runs.values()
        assert run.ends == ["preempted", "finished"]
        assert_whole(run)


def test_folders_kept_offline_are_synchronised_into_one_run(tmp_path):
    with wandb_server() as service:
        environment = track(tmp_path, "offline", service.url)
        assert service.runs == {}
        folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
        assert len(folders) == 2
        done = subprocess.run(
            [str(Path(sys.executable).parent / "wandb"), "sync", *map(str, folders)],
            capture_output=True, text=True, check=True, timeout=150, env=environment,
        )  # fmt: skip
        (run,) = service.runs.values()
        assert run.ends == ["preempted", "finished"], done.stderr
        assert_whole(run)


def test_a_run_that_goes_on_with_other_settings_tells_its_steps_anew(tmp_path):
    settings = TrackingConfig(wandb=WandbConfig(mode="disabled"), progress=False)

    def start(at: int, **config: object) -> Tracker:
        return Tracker(tmp_path, settings, {"name": "x", **config}, 12, "run12345", at)

    first = start(0, optimizer={"lr": 1.0})
    for step in range(1, 6):
        first.train(step, {"loss": 1.0})
    first.close("failed")
    again = start(3, optimizer={"lr": 1.0}, tracking={"log_every": 2})
    assert {step for kind, step in again.told if kind == "train"} == {3, 4, 5}
    again.close("failed")
    rescued = start(3, optimizer={"lr": 0.1})
    assert rescued.told == set()
    rescued.close("finished")
