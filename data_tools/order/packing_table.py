"""Packing tables that are made once: kept beside the manifest, memory-mapped by every process that needs them.

Packing a document costs tens of microseconds, at millions of documents minutes; every rank needs the table, and
a run needs it several times. The first process to ask makes it while the others wait for its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.order.packing import RowPlan, best_fit_rows, cut_rows
from data_tools.storage.cache_folder import build_once, cache_folder

log = logging.getLogger(__name__)

VERSION = 1
"""Of the packing itself: another one makes other tables."""
KEPT_FROM = 10_000
"""Documents from which on a table is kept; below, packing takes less time than reading."""
FOLDER = ".packing"
ARRAYS = ("row_start", "document", "start", "size")


@dataclass(frozen=True)
class KeptPlan(RowPlan):
    """A plan in files: another process is sent their place, never the table."""

    place: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return read_row_plan, (self.place, self.length)


def find_row_plan(
    lengths: NDArray[np.integer], length: int, method: str, window: int, folder: Path | None
) -> RowPlan:
    """The rows that documents of these ``lengths`` (documents,) make, packed now or read from where they are kept.

    ``folder`` is the data set's; where it cannot be written, tables are kept in the cache folder.
    """

    def pack() -> RowPlan:
        return best_fit_rows(lengths, length, window) if method == "best_fit" else cut_rows(lengths, length)

    if len(lengths) < KEPT_FROM:
        return pack()
    name = identify(lengths, length, method, window)
    place = (writable(folder / FOLDER) if folder else None) or cache_folder() / "packing"
    place.mkdir(parents=True, exist_ok=True)
    return keep_row_plan(place / name, pack, length)


def identify(lengths: NDArray[np.integer], length: int, method: str, window: int) -> str:
    """A name for what a table depends on, and nothing else."""
    digest = hashlib.blake2b(f"{VERSION}/{length}/{method}/{window}/".encode(), digest_size=16)
    for part in np.array_split(lengths, max(1, len(lengths) >> 20)):  # never all of them as 64 bits
        digest.update(np.ascontiguousarray(part, dtype="<i8").data)
    return digest.hexdigest()


def writable(folder: Path) -> Path | None:
    """The folder, made if need be; None where nothing can be written."""
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None


def keep_row_plan(place: Path, pack: Callable[[], RowPlan], length: int) -> RowPlan:
    """The plan kept in the folder ``place``, packed by one process at a time where there is none yet."""
    if not place.is_dir():
        with locked(place.with_suffix(".lock")):
            build_once(place, lambda folder: write_row_plan(folder, pack()))
    return read_row_plan(place, length)


def write_row_plan(folder: Path, plan: RowPlan) -> None:
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(plan, name), allow_pickle=False)
    log.info("packing table: %d rows, kept in %s", plan.rows, folder)


@lru_cache(maxsize=32)
def read_row_plan(place: Path, length: int) -> KeptPlan:
    """Memory-mapped: all processes of a machine share its pages."""
    row_start, document, start, size = (
        np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
    )
    return KeptPlan(length, row_start, document, start, size, place)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it, no other process is; one that dies lets go. A file system without locks lets several work at once."""
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
