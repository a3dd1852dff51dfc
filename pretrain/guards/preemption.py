"""Being asked to stop: a scheduler sends SIGTERM or SIGUSR1 before it takes the machine away, a person presses Ctrl-C.

`torchrun` starts its ranks again whenever one of them ends with anything but 0, and it cannot be told not to. So ranks
that were asked to stop leave a mark with their agent, and those that it then starts again end at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REQUEUE = 75
"""Exit status of a run that was asked to stop and has saved: EX_TEMPFAIL of sysexits.h, which asks to be run again."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, whether or not there was something to save."""
SAME_REQUEST = 1.0
"""Seconds within which a second signal is the first one again: SLURM signals the ranks and `torchrun`, which passes it
on to them."""
STOP_MARK = "asked_to_stop"
"""The file by which ranks tell those that their agent starts after them; `launch.local` looks for it too."""
REQUEUE_WISH = "requeue"
"""The file in a run's folder that says that the run was asked to stop, has saved, and waits to be started again."""
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Within it, signals set `asked` instead of ending the process; the step in flight is finished first.

    After Ctrl-C a second one (or SIGTERM, as which `torchrun` passes it on) ends the process at once, even where it
    waits in a collective: a thread listens, for Python's own handlers would wait for the collective's end.

    Only a main thread can listen; in another, nothing is ever asked. Once asked, it stays in force until the process
    ends: `torchrun` sends SIGTERM to the ranks that are still ending when the first one has ended.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Of the signal that asked first."""
        self.since = 0.0
        self.before: dict[signal.Signals, Any] = {}
        self.wakeup_before = -1

    @property
    def asked(self) -> bool:
        return self.number is not None

    @property
    def status(self) -> int:
        """The exit status that answers the request. A rank that was not asked itself stops for those that were."""
        return INTERRUPTED if self.number == signal.SIGINT else REQUEUE

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.listening, wakeup = socket.socketpair()
            wakeup.setblocking(False)
            self.wakeup = wakeup
            self.before = {number: signal.signal(number, ignore) for number in SIGNALS}
            self.wakeup_before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self.listen, daemon=True, name="signals").start()
            follow_agent()
        return self

    def listen(self) -> None:
        with self.listening:
            while number := self.listening.recv(1):
                if number[0] in SIGNALS:
                    self.ask(number[0])

    def ask(self, number: int) -> None:
        """Take a signal; end the process where it is the second after Ctrl-C."""
        now = time.monotonic()
        if self.number is None:
            self.number, self.since = number, now
        elif self.number == signal.SIGINT and number != signal.SIGUSR1 and now - self.since > SAME_REQUEST:
            if os.environ.get("RANK", "0") == "0":
                print(
                    "interrupted; the same command goes on from the newest checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            os._exit(INTERRUPTED)

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.before and not self.asked:
            signal.set_wakeup_fd(self.wakeup_before)
            for number, handler in self.before.items():
                signal.signal(number, handler)
            self.wakeup.close()  # which ends the thread


def ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler, so that the signal is written to the wakeup descriptor and does nothing else."""


def follow_agent() -> None:
    """Have the kernel send SIGTERM to this rank when its `torchrun` agent ends before it (as SIGUSR1 makes it)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM.value, 0, 0, 0)


def leave_stop_mark(status: int, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the ranks that this rank's `torchrun` agent starts next that the job was asked to stop."""
    if mark := stop_mark(environment):
        mark.write_text(f"{environment.get('TORCHELASTIC_RESTART_COUNT', '0')} {status}")


def read_stop_mark(environment: Mapping[str, str] = os.environ) -> int | None:
    """The exit status with which the ranks before these were asked to stop; None where they were not.

    Ranks that are started again because the number of nodes changes were not asked to stop, though they got SIGTERM:
    such a start does not count as a restart.
    """
    mark = stop_mark(environment)
    if mark is None:
        return None
    try:
        restart, status = map(int, mark.read_text().split())
    except FileNotFoundError:
        return None
    if int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > restart:
        return status
    mark.unlink(missing_ok=True)
    return None


def stop_mark(environment: Mapping[str, str]) -> Path | None:
    """Where the agent's ranks leave the mark: in the agent's own folder of logs. None where there is no agent.

    `torchrun` names each rank a file LOGS/attempt_N/LOCAL_RANK/error.json.
    """
    error_file = environment.get("TORCHELASTIC_ERROR_FILE")
    return Path(error_file).parents[2] / STOP_MARK if error_file else None
