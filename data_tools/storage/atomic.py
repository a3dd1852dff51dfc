"""Files that are there as a whole or not at all, as readable as the umask lets them be, and what a full disk says."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("no space left on device", "disk quota exceeded")
"""In the errors of libraries that write files in a language of their own (safetensors)."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file that is there as a whole or not at all, even after a power cut; text as UTF-8.

    Raises:
        OSError: it cannot be written; on a full disk, the error names the disk and what was needed.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, len(raw)) as partial:
        partial.write_bytes(raw)


@contextmanager
def atomic_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Within it, any writer fills the path given; that file then gets the name `path`, or is deleted on failure.

    Args:
        needed: the file's size in bytes where it is known, for the message on a full disk.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with full_disk_explained(path, needed):
            yield partial
            follow_umask(partial)
            fsync(partial)
            partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename == str(partial):  # whose name says nothing to the user
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Make a file or a folder's list of names durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(path: Path) -> None:
    """Give a file, or a folder and all that is in it, the permissions that the umask asks for.

    Libraries that write to a temporary file first (safetensors, `tempfile`) leave it to its owner alone.
    """
    mask = read_umask()
    for place in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not place.is_symlink():
            place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)


def read_umask() -> int:
    """The process's umask, without setting it: that would be another one for all threads meanwhile."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:")), 8)
    except (OSError, StopIteration):  # not Linux
        mask = os.umask(0o022)
        os.umask(mask)
        return mask


@contextmanager
def full_disk_explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within it, a full disk is an `OSError` that names the disk, what was needed and what was free before.

    Args:
        path: what is written.
        needed: its size in bytes, where that is known.
    """
    free = free_bytes(path)
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise explain_full_disk(error, path, needed, free) from None
    except Exception as error:
        if not any(text in str(error).lower() for text in FULL_TEXTS):
            raise
        raise OSError(errno.ENOSPC, describe_full_disk(path, needed, free), str(path)) from None


def explain_full_disk(
    error: OSError, path: Path, needed: int | None = None, free: int | None = None
) -> OSError:
    """The error as it is, unless it is of a full disk: then one that names the disk, what is needed and what is free.

    Args:
        free: what was free before; what is free now, where that is not known.
    """
    if error.errno not in FULL:
        return error
    free = free_bytes(path) if free is None else free
    return OSError(error.errno, describe_full_disk(path, needed, free), str(path))


def describe_full_disk(path: Path, needed: int | None, free: int) -> str:
    """`no space left on /dev/sda1 (/data), 120.0 MB needed, 3.1 kB free`."""
    asked = "" if needed is None else f", {describe_bytes(needed)} needed"
    return f"no space left on {disk_of(path)}{asked}, {describe_bytes(free)} free"


def describe_bytes(count: int) -> str:
    """`812 bytes`, `4.1 kB`, `120.0 MB`, `1.2 TB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def free_bytes(path: Path) -> int:
    """What is free for a path that need not be there yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def disk_of(path: Path) -> str:
    """The device that a path is on, and where it is mounted."""
    place = nearest_existing(path).resolve()
    mount = next(folder for folder in (place, *place.parents) if os.path.ismount(folder))
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return str(mount)
    devices = [device for device, point, *_ in lines if point == str(mount)]
    return f"{devices[-1]} ({mount})" if devices else str(mount)
