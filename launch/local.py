"""Start one of the packages on this machine, in as many processes as it has devices, through `torchrun`'s own agent."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STOP_MARK = "asked_to_stop"
"""What `pretrain` leaves in the agent's folder of logs where it was asked to stop: the restart, and its exit status."""
SAVING_TIME = 300
"""Seconds that the agent waits, after it has passed a signal on, before it kills what is still being saved."""


def default_processes() -> int:
    """One a GPU; 2 on a machine without, or 1 where it has a single core."""
    import torch

    return torch.cuda.device_count() or min(2, available_cores())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def run_processes(package: str, arguments: list[str], processes: int | None = None) -> int:
    """Run `python -m package arguments…` in `processes` processes that know of each other.

    Returns:
        The exit status: 0, or that of the process that failed first; that of the job where it was asked to stop and
        has saved (75, or 130 after Ctrl-C). What it printed is all the user sees; the agent's own account of the
        failure stays out of it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    processes = processes or default_processes()
    # Each process computes with its share of the cores; the agent would otherwise set 1 and say so.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_TIME))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="masquerade-") as logs:
        agent = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={logs}"]
        try:
            run(parse_args([*agent, "-m", package, *arguments]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as error:  # the agent has passed the signal on, and the processes have ended
            return read_stop_status(Path(logs)) or 128 + error.sigval
    return 0


def read_stop_status(logs: Path) -> int | None:
    """The exit status with which the processes ended that were asked to stop; None where they could not answer."""
    for mark in logs.glob(f"*/{STOP_MARK}"):
        return int(mark.read_text().split()[-1])
    return None


def run_one(package: str, arguments: list[str]) -> int:
    """Run `python -m package arguments…` alone and return its exit status."""
    return subprocess.run([sys.executable, "-m", package, *arguments], check=False).returncode
