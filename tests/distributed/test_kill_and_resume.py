"""SIGKILL at any moment costs the steps since the last checkpoint and nothing else."""

from __future__ import annotations

import os
import signal
import time
from functools import cache
from pathlib import Path

import pytest

from tests.cases import CASES
from tests.distributed.slow_steps import SECONDS, SLOW_STEPS
from tests.processes import QUIET, kill, losses, run, start

STEPS = 24
SETTINGS = [
    f"train.steps={STEPS}",
    "train.global_batch_size=8",
    "checkpoint.every=3",
    "tracking.log_every=1",
    SLOW_STEPS,
    *QUIET,
]
pytestmark = pytest.mark.slow


def start_slowly(settings, processes=1):
    """Start a run that is still under way when it is told to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECONDS, "0.2")
        return start("pretrain", settings, processes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of a case that ran to its end, by (case, processes): trained once for all tests."""

    @cache
    def train(case, processes=1):
        folder = tmp_path_factory.mktemp("whole")
        run("pretrain", [*CASES[case], f"run_dir={folder}", *SETTINGS], processes)
        return losses(folder)

    return train


def kill_after(process, run_dir, step):
    """Wait until the run has logged `step`, then kill all of it without warning."""
    wait_for(process, run_dir, step)
    kill(process)


def wait_for(process, run_dir, step):
    """Wait until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and max(losses(run_dir), default=0) >= step:
            break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.parametrize(("case", "processes"), [("mae", 1), ("mae", 2), ("gan", 2)])
def test_a_killed_run_goes_on_bit_for_bit(undisturbed, tmp_path, case, processes):
    again = [*CASES[case], f"run_dir={tmp_path}", *SETTINGS]
    kill_after(start_slowly(again, processes), tmp_path, step=8)
    before = losses(tmp_path)
    assert 8 <= max(before) < STEPS
    run("pretrain", again, processes)

    after = losses(tmp_path)
    assert after == undisturbed(case, processes)
    assert {step: after[step] for step in before} == before
    assert '"kind": "resume"' in (tmp_path / "metrics.jsonl").read_text()


def test_a_finished_run_is_not_trained_again(tmp_path):
    settings = [*CASES["mae"], f"run_dir={tmp_path}", *SETTINGS, "train.steps=3"]
    run("pretrain", settings)
    before = losses(tmp_path)
    run("pretrain", settings)
    assert losses(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_saves_and_asks_to_be_run_again(undisturbed, tmp_path, number):
    settings = [*CASES["mae"], f"run_dir={tmp_path}", *SETTINGS, "checkpoint.every=1000"]
    process = start_slowly(settings)
    wait_for(process, tmp_path, step=5)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert "stopped as asked, after step" in said
    last = max(losses(tmp_path))
    assert 5 <= last < STEPS
    assert (tmp_path / "checkpoints" / f"step_{last:08d}" / "manifest.json").exists()
    run("pretrain", settings)
    assert losses(tmp_path) == undisturbed("mae")


def test_one_rank_that_is_asked_to_stop_stops_all_after_the_same_step(tmp_path):
    settings = [
        *CASES["mae"],
        f"run_dir={tmp_path}",
        *SETTINGS,
        "checkpoint.every=1000",
        "train.steps=100000",
    ]
    process = start("pretrain", settings, 2)
    wait_for(process, tmp_path, step=5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGUSR1)  # ranks are started in their order
    process.communicate(timeout=60)
    assert len(list((tmp_path / "checkpoints").glob("step_*/manifest.json"))) == 1
    assert '"kind": "preempted"' in (tmp_path / "metrics.jsonl").read_text()
