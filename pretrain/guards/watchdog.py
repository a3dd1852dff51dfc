"""The watchdog of a rank: when no step ends for too long, it writes every thread's stack and ends the process.

All ranks of a job wait for each other, so one that hangs makes all of them late: each writes its own stacks, and the
one that is not waiting in a collective is the culprit. The launcher may then start the job again, which goes on from
its newest checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO

SHARE_OF_TIMEOUT = 0.8
"""The default limit as a share of the collectives' timeout: afterwards the waiting ranks would end, and take along the
stacks of the one they wait for."""
GRACE = 5.0
"""Seconds between writing stacks and ending, so that ranks a little behind write theirs before all are stopped."""


class Watchdog:
    """Within it, `heartbeat` must be called at least every `seconds`, which may change; 0 seconds watches nothing."""

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self.path = folder / f"rank_{rank:05d}.txt"
        self.rank = rank
        self.seconds = seconds
        self.last, self.doing = time.monotonic(), "start"
        self.over = threading.Event()
        self.file: IO[str] | None = None

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a")
            self.heartbeat(self.doing)
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()
        return self

    def heartbeat(self, doing: str) -> None:
        """Something has been done, and `doing` is next."""
        self.last, self.doing = time.monotonic(), doing
        if self.file:
            # A thread in C, for a hang that holds the interpreter's lock, when `watch` cannot run. It comes before the
            # ranks that have barked end, for then the launcher ends this one too.
            later = self.seconds + GRACE / 2
            faulthandler.dump_traceback_later(later, exit=True, file=self.file)

    def watch(self) -> None:
        while not self.over.wait(max(0.0, self.last + self.seconds - time.monotonic())):
            if time.monotonic() - self.last >= self.seconds:
                self.bark()

    def bark(self) -> None:
        """Say where this rank is, write its stacks, and end the process without any collective."""
        assert self.file
        print(f"\n{self.doing}, no end for {self.seconds:g} s:", file=self.file, flush=True)
        faulthandler.dump_traceback(self.file, all_threads=True)
        print(
            f"rank {self.rank}: {self.doing} has not ended for {self.seconds:g} s (train.hang_timeout); it is at "
            f"{locate_main_thread()}; all stacks of all ranks are in {self.path.parent}",
            file=sys.stderr,
            flush=True,
        )
        if not self.over.wait(GRACE):
            os._exit(1)

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.over.set()
        if self.file:
            faulthandler.cancel_dump_traceback_later()
            self.file.close()
            if not self.path.stat().st_size:
                self.path.unlink()


def locate_main_thread() -> str:
    """Where the main thread is, as `file:line function`."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
