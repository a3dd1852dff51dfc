"""What docs/checkpoints.md promises of a job that is asked to stop, under the real launchers.

Each start goes on where the one before has stopped, and is asked in another way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pretrain.checkpoint.folder import complete, step_of
from tests.processes import QUIET, environment, kill, losses
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=8", "train.steps=1000000", "checkpoint.every=1000000",
    "tracking.log_every=1", *QUIET,
]  # fmt: skip
WORKERS = ["data.workers=1", "data.worker_kind=process"]
TORCHRUN = [
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "--max-restarts=1",
    "-m",
    "pretrain",
]
LAUNCH = ["launch", "local", "--processes=2", "pretrain"]
PLAIN = ["pretrain"]
pytestmark = pytest.mark.slow


class Job:
    """A command in the background that trains until it is asked to stop."""

    def __init__(self, module: list[str], folder, *settings: str) -> None:
        self.folder = folder
        self.saved_before = self.steps_saved()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module, *SETTINGS, f"run_dir={folder}", *settings], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Job:
        logged = max(self.saved_before, default=0)
        deadline = time.monotonic() + 240
        while (
            not (self.folder / "metrics.jsonl").exists() or max(losses(self.folder), default=0) < logged + 3
        ):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "the run did not get going"
            time.sleep(0.05)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def __exit__(self, *_error) -> None:
        kill(self.process)
        for member in self.family:  # what has lost its parents
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()

    def ranks(self) -> list[psutil.Process]:
        return [one for one in self.family if one.ppid() == self.process.pid and "pretrain" in one.cmdline()]

    def steps_saved(self) -> set[int]:
        return {step_of(path) for path in complete(self.folder / "checkpoints")}

    def end(self) -> str:
        """What it printed, when it has ended with one more checkpoint, at the step in hand, and trained no further."""
        said = self.process.communicate(timeout=120)[0]
        _, alive = psutil.wait_procs(self.family, timeout=60)
        assert not alive, f"still there: {[one.cmdline() for one in alive]}\n{said}"
        new = self.steps_saved() - self.saved_before
        assert new == {max(losses(self.folder))}, said
        assert said.count("stopped as asked, after step") == 1, said
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["kind"] == "preempted", lines[-1]
        return said


def test_a_job_that_is_asked_to_stop_saves_the_step_in_hand_and_does_not_train_on(tmp_path):
    wish = tmp_path / "requeue"
    # The agent knows nothing of SIGUSR1 and dies before it can pass anything on: its ranks stop with it.
    with Job(TORCHRUN, tmp_path) as job:
        job.process.send_signal(signal.SIGUSR1)
        job.end()
        assert job.process.returncode == -signal.SIGUSR1
        assert int(wish.read_text()) == max(job.steps_saved())

    # SIGTERM to one rank and its data workers only: torchrun would start the ranks again, and does, in vain.
    with Job(TORCHRUN, tmp_path, *WORKERS) as job:
        assert not wish.exists(), "a run that goes on waits for nothing"
        assert len(job.family) > 4, "ranks have data workers"
        os.killpg(job.ranks()[1].pid, signal.SIGTERM)
        said = job.end()
        assert job.process.returncode == 1, "torchrun's own status for whatever its ranks end with"
        assert "exitcode  : 75" in said
        assert "BrokenProcessPool" not in said
        assert wish.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_launch_local_ends_with_the_status_of_the_run(tmp_path, number, status):
    with Job(LAUNCH, tmp_path) as job:
        job.process.send_signal(number)
        said = job.end()
        assert job.process.returncode == status
        assert "Traceback" not in said
        assert (tmp_path / "requeue").exists() == (status == 75)


def test_ctrl_c_saves_the_step_in_hand(tmp_path):
    with Job(PLAIN, tmp_path, *WORKERS) as job:
        os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does: the data workers too
        said = job.end()
        assert job.process.returncode == 130
        assert said.splitlines()[-1].startswith("stopped as asked, after step"), "one line says so"
