"""One process at a time, among all that see the same folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, fleeting: bool = False) -> Iterator[None]:
    """Within it, no other process or thread is; one that dies lets go. The file stays, unless it is ``fleeting``.

    A file system without locks (some NFS) lets several work at once, so what is done within must bear that: write
    by renaming, and let the same file be written twice.

    Raises:
        OSError: the lock's file cannot be made.
    """
    while True:
        handle = open_lock(path)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_at(handle, path):
            break
        os.close(handle)  # whoever had it has removed it: whoever comes next makes another one
    try:
        yield
    finally:
        if fleeting:
            with suppress(OSError):
                path.unlink()
        os.close(handle)


def open_lock(path: Path) -> int:
    """A descriptor to lock by, of a file that any user may have made."""
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except PermissionError:  # another user's, in a cache that is shared: a reader can lock it as well
        return os.open(path, os.O_RDONLY)


def try_lock(handle: int) -> bool:
    """Lock a file for this descriptor alone, unless somebody else has; True too where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # several work at once then
        return True
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still lies at the path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
