"""Open files, and what else is kept for a while."""

from __future__ import annotations

import logging
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """What cannot be used as it is in a process that is forked: it has locks, threads, connections."""

    def begin_in_child(self) -> None: ...


_forked: WeakSet[Any] = WeakSet()


def renew_when_forked(what: Forked) -> None:
    """Call ``what.begin_in_child()`` in every forked process, such as a DataLoader's workers, before anything else.

    None of this process's threads live on there, and a lock that one of them holds is held for ever.
    """
    _forked.add(what)


def _begin_in_child() -> None:
    for what in list(_forked):
        what.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)

log = logging.getLogger(__name__)

SPARE_FILES = 256  # descriptors that are left to the rest of the process

MOST_FILES = 1 << 16  # that the process is allowed; some libraries close all that it might have

CACHES = 4  # as large as one another may be: shards, segments, and twice as many sidecars


class OpenFile:
    """A descriptor that is closed when the last thread that reads from it lets go."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes; the file stays open meanwhile, though the cache may have dropped it."""
        return os.pread(self.handle, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


def allow_open_files(wanted: int) -> int:
    """How many files a cache may keep open, at most ``wanted``; the process is allowed more where the system lets it.

    What is used in turn must fit as a whole: a cache that is one too small has always just dropped the next one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CACHES * wanted + SPARE_FILES
    if resource.RLIM_INFINITY != soft < needed:
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        soft = max(soft, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    log.warning(
        "%d files are read in turn, but this process may open %d only; raise `ulimit -Hn`", wanted, soft
    )
    return max(1, (soft - SPARE_FILES) // CACHES)


class Recent:
    """The most recently used values of a function, safe among threads and dropped when pickled.

    Of threads that ask for the same value at once, one makes it and the others wait.
    """

    def __init__(self, make: Callable[[Any], Any], size: int) -> None:
        self._make, self.size = make, size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()
        renew_when_forked(self)

    def begin_in_child(self) -> None:
        """The values are as good here, but whoever held a lock, or was making a value, is not here."""
        self._lock = threading.Lock()
        self._making = {}

    def __call__(self, key: Any) -> Any:
        values = self._values
        try:  # without the lock: between these two steps another thread can drop the value, which is made anew then
            values.move_to_end(key)
            return values[key]
        except KeyError:
            pass
        with self._lock:
            if key in values:
                return values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = self._make(key)
            except BaseException:
                self._making.pop(key, None)
                raise
            with self._lock:
                self._values[key] = value
                self._making.pop(key, None)
                while len(self._values) > self.size:
                    self._values.popitem(last=False)
            return value

    def forget(self, key: Any) -> None:
        """Drop a value: it is made anew when it is next asked for."""
        with self._lock:
            self._values.pop(key, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._make, self.size)
