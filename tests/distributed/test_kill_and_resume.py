"""SIGKILL at any moment costs the steps since the last checkpoint and nothing else."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.processes import losses, run, start

SETTINGS = [
    "train.steps=40", "train.global_batch_size=64", "checkpoint.every=7", "tracking.log_every=1",
    "tracking.wandb.mode=disabled", "tracking.picture_every=0", "probe.every=0",
]  # fmt: skip


def kill_after(process, run_dir, step):
    """Wait until the run has logged `step`, then kill all of it without warning."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and max(losses(run_dir), default=0) >= step:
            break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


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
