"""SIGKILL at any moment costs the steps since the last checkpoint and nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import QUIET, kill, losses, run, start

SETTINGS = [
    "train.steps=40", "train.global_batch_size=64", "checkpoint.every=7", "tracking.log_every=1",
    *QUIET,
]  # fmt: skip


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


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "processes"), [("mae_digits", 1), ("mae_digits", 2), ("gan_digits", 2)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, recipe, processes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [*SETTINGS, "train.global_batch_size=8"] if recipe == "gan_digits" else SETTINGS
    run("pretrain", [recipe, f"run_dir={whole}", *settings], processes)

    again = [recipe, f"run_dir={killed}", *settings]
    kill_after(start("pretrain", again, processes), killed, step=16)
    before = losses(killed)
    assert 16 <= max(before) < 40
    run("pretrain", again, processes)

    after = losses(killed)
    assert after == losses(whole)
    assert {step: after[step] for step in before} == before
    text = (killed / "metrics.jsonl").read_text()
    assert '"kind": "resume"' in text


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path):
    settings = ["mae_digits", f"run_dir={tmp_path}", *SETTINGS, "train.steps=3"]
    run("pretrain", settings)
    before = losses(tmp_path)
    run("pretrain", settings)
    assert losses(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_saves_and_asks_to_be_run_again(tmp_path, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = [*SETTINGS, "checkpoint.every=1000"]
    run("pretrain", ["mae_digits", f"run_dir={whole}", *settings])
    process = start("pretrain", ["mae_digits", f"run_dir={stopped}", *settings])
    wait_for(process, stopped, step=10)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert "stopped as asked, after step" in said
    last = max(losses(stopped))
    assert 10 <= last < 40
    assert (stopped / "checkpoints" / f"step_{last:08d}" / "manifest.json").exists()
    run("pretrain", ["mae_digits", f"run_dir={stopped}", *settings])
    assert losses(stopped) == losses(whole)


@pytest.mark.slow
def test_one_rank_that_is_asked_to_stop_stops_all_after_the_same_step(tmp_path):
    process = start("pretrain", ["mae_digits", f"run_dir={tmp_path}", *SETTINGS, "checkpoint.every=1000"], 2,
                    warm=False)  # torchrun's ranks have their rank in /proc  # fmt: skip
    wait_for(process, tmp_path, step=10)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    os.kill(int(workers[0]), signal.SIGUSR1)
    process.communicate(timeout=60)
    assert len(list((tmp_path / "checkpoints").glob("step_*/manifest.json"))) == 1
    assert '"kind": "preempted"' in (tmp_path / "metrics.jsonl").read_text()
