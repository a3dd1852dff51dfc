"""Open files, and what else is kept for a while."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


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


class Recent:
    """The most recently used values of a function, safe among threads and dropped when pickled."""

    def __init__(self, make: Callable[[Any], Any], size: int) -> None:
        self._make, self._size = make, size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def forget(self, key: Any) -> None:
        with self._lock:
            self._values.pop(key, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._make, self._size)
