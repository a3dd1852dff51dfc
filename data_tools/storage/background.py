"""Threads that nobody waits for at the end of a process, and waiting that can be broken off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

GLANCE = 0.2
"""Seconds after which a wait looks whether it is still wanted."""

_thread = threading.local()


class StoppedError(RuntimeError):
    """Nobody wants the result any more."""


def interrupt_by(stop: threading.Event) -> None:
    """From now on, what this thread waits for is given up, with a `StoppedError`, once ``stop`` is set."""
    _thread.stop = stop


def refuse_when_stopped() -> None:
    """Raise StoppedError where the thread's work is not wanted any more."""
    stop = getattr(_thread, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError("what asked for this has been closed")


def pause(seconds: float) -> None:
    """Sleep; raises StoppedError as soon as the thread's work is not wanted any more."""
    stop = getattr(_thread, "stop", None)
    if stop is None:
        time.sleep(seconds)
    else:
        stop.wait(seconds)
        refuse_when_stopped()


def wait_for_first(futures: Sequence[Future[Any]], seconds: float | None = None) -> list[Future[Any]]:
    """Those that are done once one of them is, or after ``seconds``. Raises StoppedError, as `pause` does."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = GLANCE if deadline is None else min(GLANCE, max(0.0, deadline - time.monotonic()))
        done, _ = wait(futures, left, FIRST_COMPLETED)
        if done or (deadline is not None and time.monotonic() >= deadline):
            return [future for future in futures if future in done]
        refuse_when_stopped()


def start_in_background(work: Callable[[], T]) -> Future[T]:
    """Have a thread do something; it ends with the process, whatever it waits for."""
    future: Future[T] = Future()
    threading.Thread(target=_finish, args=(future, work), daemon=True, name="read").start()
    return future


def _finish(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


class DaemonPool:
    """A few threads that work off a queue, and end with the process, whatever they wait for."""

    def __init__(self, threads: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"{name}-{number}")
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have one of the threads do ``work(*arguments)``."""
        future: Future[T] = Future()
        self._queue.put((future, lambda: work(*arguments)))
        return future

    def _work(self) -> None:
        interrupt_by(self._stop)
        while (task := self._queue.get()) is not None:
            if self._stop.is_set():
                task[0].cancel()
            else:
                _finish(*task)

    def shutdown(self) -> None:
        """Break off what is waited for, drop what has not begun, and end the threads."""
        self._stop.set()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + 10 * GLANCE
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
