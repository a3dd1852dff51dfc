"""Packing tables that are made once: kept beside the manifest, memory-mapped by every process that needs them.

Every rank needs the table, and a run needs it several times. It goes by what the lengths depend on, so that they are
read only when it is made. The first process to ask makes it, block by block, while the others wait for its lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.order.packing import Columns, RowPlan, block_documents, open_plan, pack, plan_rows
from data_tools.order.token_windows import (
    TOKEN_WINDOWS,
    TokenWindowPlan,
    pack_token_windows,
    plan_token_windows,
)
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once, cache_folder

log = logging.getLogger(__name__)

VERSION = 2
"""Of the table's form: another one makes other files. The rows are those of version 1."""
KEPT_FROM = 2_000
"""Documents from which on a table is kept; fewer take less than half a second, once in a process."""
BLOCK_DOCUMENTS = 1 << 21
"""Whose lengths are read at a time for token windows."""
FOLDER = ".packing"
HEAD = "plan.json"

Lengths = Callable[[int, int], NDArray[np.integer]]  # (first, last) → tokens of these documents


def find_row_plan(
    lengths: Lengths,
    documents: int,
    identity: str,
    length: int,
    method: str,
    window: int | Callable[[int], int],
    folder: Path | None,
) -> RowPlan:
    """The rows that ``documents`` make, packed now or opened where they are kept.

    ``identity``: a name for what the lengths depend on; they are read only where rows have to be packed. ``folder``
    is the data set's; where it cannot be written, tables are kept in the cache folder. ``window``: documents packed
    together; for token windows, what says how many rows one has, told the tokens of all documents.
    """
    many = block_documents(length, window) if isinstance(window, int) else BLOCK_DOCUMENTS

    def read() -> Iterator[NDArray[np.integer]]:
        return (lengths(first, min(first + many, documents)) for first in range(0, max(1, documents), many))

    if documents < KEPT_FROM:
        few = np.concatenate([np.asarray(block, dtype=np.int64) for block in read()])
        size = window if isinstance(window, int) else window(int(few.sum()))
        return pack_few(few.tobytes(), length, method, size)
    text = (
        f"{VERSION}/{length}/{method}/{window if isinstance(window, int) else 'rows'}/{documents}/{identity}"
    )
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    place = (writable(folder / FOLDER) if folder else None) or cache_folder() / "packing"
    place.mkdir(parents=True, exist_ok=True)
    place /= name
    if not place.is_dir():

        def make(target: Path) -> None:
            size = (
                window if isinstance(window, int) else window(sum(int(b.sum(dtype=np.int64)) for b in read()))
            )
            write_row_plan(target, read(), method, length, size)

        build_once(place, make)
    return read_row_plan(place)


@lru_cache(maxsize=32)
def pack_few(lengths: bytes, length: int, method: str, window: int) -> RowPlan:
    """The plan for documents of ``lengths``, int64 each: a run asks for its own several times."""
    blocks = [np.frombuffer(lengths, dtype=np.int64)]
    if method == TOKEN_WINDOWS:
        return plan_token_windows(blocks, length, window)
    return plan_rows(blocks, method, length, window)


def writable(folder: Path) -> Path | None:
    """The folder, made if need be; None where nothing can be written."""
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None


def write_row_plan(
    folder: Path, blocks: Iterable[NDArray[np.integer]], method: str, length: int, window: int
) -> None:
    """Pack blocks of documents into a folder: a flat file for each column, and ``plan.json``, which names them."""
    total = 0
    shapes: dict[str, tuple[str, int]] = {}  # of each column: dtype, length
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for columns, tokens in _pack(blocks, method, length, window):
            total += tokens
            for name, column in columns.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                dtype, count = shapes.get(name, (column.dtype.newbyteorder("<").str, 0))
                files[name].write(np.ascontiguousarray(column, dtype=dtype).data)
                shapes[name] = dtype, count + len(column)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    head = {"method": method, "length": length, "window": window, "tokens": total, "columns": shapes}
    write_atomically(folder / HEAD, json.dumps(head))
    log.info("packing table of %d tokens, kept in %s", total, folder)


def _pack(
    blocks: Iterable[NDArray[np.integer]], method: str, length: int, window: int
) -> Iterator[tuple[Columns, int]]:
    if method == TOKEN_WINDOWS:
        return pack_token_windows(blocks, length, window)
    return pack(blocks, method, length, window)


class MappedColumns(dict[str, NDArray[Any]]):
    """The columns in a folder, memory-mapped; another process is sent their place, never the table."""

    def __init__(self, place: Path, shapes: dict[str, tuple[str, int]]) -> None:
        super().__init__({name: _map(place / f"{name}.bin", *shape) for name, shape in shapes.items()})
        self.place, self.shapes = place, shapes

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedColumns, (self.place, self.shapes)


def _map(path: Path, dtype: str, count: int) -> NDArray[Any]:
    return np.memmap(path, dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)


@lru_cache(maxsize=32)
def read_row_plan(place: Path) -> RowPlan:
    """Memory-mapped: all processes of a machine share its pages. Raises UserError when the files are not whole."""
    try:
        head = json.loads((place / HEAD).read_bytes())
        columns = MappedColumns(place, head["columns"])
        length, window, tokens = head["length"], head["window"], head["tokens"]
        if head["method"] == TOKEN_WINDOWS:
            return TokenWindowPlan(length, window, columns, int(columns["rows"].sum()), tokens)
        return open_plan(head["method"], length, window, columns, tokens)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place}: damaged packing table ({error}); delete it, and it is made again"
        ) from None
