"""Worker processes of a loader: they end with their parent, and by nothing else.

A scheduler, a terminal and `torchrun` send their signals to every process of a job, its workers included. These must
go on, for the step in hand is finished and saved first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 5.0
"""Seconds that a worker has for the end of what it is at, when its pool is ended."""
Work = TypeVar("Work")
Made = TypeVar("Made")

_work: Callable[[Any], Any]  # what this worker process does; set once when it starts


class ProcessPool(ProcessPoolExecutor):
    """Processes that all do one thing. What it is must be picklable, and goes to each of them once."""

    def __init__(self, workers: int, work: Callable[[Work], Made]) -> None:
        # spawn: a fork would copy locks that the parent's threads (torch, CUDA) hold
        super().__init__(workers, get_context("spawn"), _start_worker, (work,))

    def do(self, what: Work) -> Future[Made]:
        """Have a worker do its work; the first calls start the processes."""
        # A process begins with the signals blocked that the thread that starts it has blocked, from before its Python
        # runs, and so do all its threads. What comes here meanwhile is delivered afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return self.submit(_do_work, what)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """Drop what has not begun, and end the processes: by force where one still works, or waits for storage."""
        processes = list(self._processes.values()) if self._processes else []
        self.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603 - a process of a pool has no other place for what it was started with
    torch.set_num_threads(1)
    _work = work
    for watch in (_exit_with_parent, _exit_for_parent):
        threading.Thread(target=watch, daemon=True).start()


def _exit_with_parent() -> None:
    """A parent killed with SIGKILL cannot say goodbye: without this its workers would wait forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _exit_for_parent() -> None:
    """A pool that has lost a worker ends the others with SIGTERM, and waits for that; nobody else's counts."""
    while hasattr(signal, "sigwaitinfo"):
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == os.getppid():
            os._exit(1)


def _do_work(what: Any) -> Any:
    return _work(what)
