"""Starting this project's commands as processes of their own, and stopping with them."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pretrain.guards.preemption import INTERRUPTED, PR_SET_PDEATHSIG, REQUEUE, StopRequest

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
LOOK = 0.1
"""Seconds between looks at a process."""
SPENT = "spent.jsonl"
"""A line for every process that has ended: its name and its seconds."""


class JobFailedError(Exception):
    """A process ended with an error, which is its text."""


class StoppedError(Exception):
    """The comparison was asked to stop."""


def start_process(module: str, arguments: list[str], ranks: int, log: IO[str]) -> subprocess.Popen[bytes]:
    """`python -m module …`, under torchrun where there are several ranks; it ends when this process does.

    It has a session of its own: Ctrl-C reaches this process alone, which asks it to stop once.
    """
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True, preexec_fn=end_with_parent,  # noqa: PLW1509 - a system call and no more
    )  # fmt: skip


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the one that started it ends, however that may be."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM.value, 0, 0, 0)


class Jobs:
    """Runs one process after the other, each with a log of its own in the comparison's folder."""

    def __init__(self, out: Path, ranks: int, stop: StopRequest, say: Callable[[str], None]) -> None:
        self.out, self.ranks, self.stop, self.say = out, ranks, stop, say

    def check_stop(self) -> None:
        """Raise `StoppedError` where somebody has asked to stop."""
        if self.stop.asked:
            raise StoppedError

    def run(self, name: str, module: str, arguments: list[str]) -> float:
        """Run a command to its end, and return its seconds.

        Raises:
            JobFailedError: it ended with an error.
            StoppedError: this process or that one was asked to stop, and that one has ended.
        """
        self.check_stop()
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        started, passed_on = time.monotonic(), False
        with log.open("w", encoding="utf-8") as output:
            process = start_process(module, arguments, self.ranks, output)
            while (status := process.poll()) is None:
                if self.stop.asked and not passed_on:
                    self.say(f"asked to stop; {name} is asked too (again: at once)")
                    process.send_signal(signal.SIGTERM)
                    passed_on = True
                time.sleep(LOOK)
        seconds = time.monotonic() - started
        with (self.out / SPENT).open("a") as spent:
            spent.write(json.dumps({"job": name, "seconds": round(seconds, 2)}) + "\n")
        if passed_on or status in (REQUEUE, INTERRUPTED):
            raise StoppedError
        if status:
            raise JobFailedError(f"{find_reason(log.read_text('utf-8', 'replace'), status)} ({log})")
        return seconds


def find_reason(output: str, status: int) -> str:
    """Why a process ended, in a line of its output: the last that tells an error, else the last one."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{', as the kernel does where memory runs out' if name == 'SIGKILL' else ''}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(error|\w*(Error|Exception))\b.*:", line)]
    return (told or lines or [f"ended with exit status {status}"])[-1].removeprefix("error: ")


def read_spent(out: Path) -> dict[str, float]:
    """Seconds by job, of all its starts."""
    spent: dict[str, float] = {}
    if (out / SPENT).exists():
        for line in (out / SPENT).read_text().splitlines():
            entry: dict[str, Any] = json.loads(line)
            spent[entry["job"]] = spent.get(entry["job"], 0.0) + entry["seconds"]
    return spent
