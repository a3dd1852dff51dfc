"""Start one of the packages on this machine, in as many processes as it has devices, through `torchrun`'s own agent."""

from __future__ import annotations

import logging
import os
import subprocess
import sys


def default_processes() -> int:
    """One a GPU; 2 on a machine without, or 1 where it has a single core."""
    import torch

    return torch.cuda.device_count() or min(2, available_cores())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def run_processes(package: str, arguments: list[str], processes: int | None = None) -> int:
    """Run `python -m package arguments…` in `processes` processes that know of each other.

    Returns:
        The exit status: 0, or that of the process that failed first. What it printed is all the user sees; the
        agent's own account of the failure stays out of it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    processes = processes or default_processes()
    # Each process computes with its share of the cores; the agent would otherwise set 1 and say so.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["--standalone", f"--nproc-per-node={processes}", "-m", package, *arguments]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:  # the agent has passed the signal on, and the processes have ended
        return 128 + error.sigval
    return 0


def run_one(package: str, arguments: list[str]) -> int:
    """Run `python -m package arguments…` alone and return its exit status."""
    return subprocess.run([sys.executable, "-m", package, *arguments], check=False).returncode
