"""One process at a time, among all that see the same folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it, no other process or thread is; one that dies lets go.

    A file system without locks (some NFS) lets several work at once, so what is done within must bear that: write
    by renaming, and let the same file be written twice.

    Raises:
        OSError: the lock's file cannot be made.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except PermissionError:  # another user's, in a cache that is shared: a reader can lock it as well
        handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
