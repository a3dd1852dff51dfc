"""Documents → rows of a fixed number of tokens: which piece of which document stands in which row. No I/O.

A plan keeps what cannot be computed, in columns that need not be in memory, and unfolds the rows that are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.order.best_fit import pack_windows

Int64Array = NDArray[np.int64]
Columns = Mapping[str, NDArray[Any]]

WINDOW = 4096  # documents packed together: enough sizes to choose from for rows that are > 99 % full
BLOCK_BYTES = 1 << 28  # of tables while a block of documents is packed; half a GiB with what makes them


@dataclass(frozen=True)
class Rows:
    """Row r holds the pieces row_start[r] … row_start[r + 1]: ``size`` tokens of ``document`` from ``start`` on."""

    length: int
    row_start: Int64Array  # (rows + 1,)
    document: Int64Array  # (pieces,)
    start: Int64Array
    size: Int64Array

    @property
    def rows(self) -> int:
        return len(self.row_start) - 1

    @property
    def efficiency(self) -> float:
        """Real tokens / slots."""
        return float(self.size.sum()) / max(1, self.rows * self.length)


@dataclass(frozen=True)
class RowPlan(ABC):
    """All rows of a data set: ``take`` unfolds some of them. ``columns`` may be memory-mapped; see the subclasses."""

    length: int
    window: int
    columns: Columns
    rows: int
    tokens: int

    @property
    def efficiency(self) -> float:
        """Real tokens / slots."""
        return self.tokens / max(1, self.rows * self.length)

    @abstractmethod
    def take(self, rows: Int64Array) -> Rows:
        """The rows of these numbers, shape (n,), in their order."""


class BestFitPlan(RowPlan):
    """Rows by best fit. About 10 bytes a document: windows share nothing, so numbers within one are small.

    Of each window, first come the rows that one document fills, from its last document back to its first, then those
    of several pieces. Columns: of each window its ``rows``, the ``mixed`` ones of several pieces among them, and
    their ``pieces``; of each document the rows that it and those before it in its window fill, ``filled``; of each
    mixed row its first piece within the window, ``row_first``; of each piece its ``document`` within the window, its
    ``offset`` in what exceeds whole rows of that document, and its ``size``.
    """

    def take(self, rows: Int64Array) -> Rows:
        columns, first = self.columns, self._starts
        window = np.searchsorted(first["rows"], rows, side="right") - 1
        number = rows - first["rows"][window]
        filled = columns["rows"][window] - columns["mixed"][window]
        mixed = number >= filled
        own = window[mixed]
        row = first["mixed"][own] + (number - filled)[mixed]
        begin = first["pieces"][own] + columns["row_first"][row]
        last = row + 1 == first["mixed"][own + 1]
        after = np.where(last, 0, row + 1)  # any row that is there; the last one ends with its window
        end = np.where(last, first["pieces"][own + 1], first["pieces"][own] + columns["row_first"][after])

        counts = np.ones(len(rows), dtype=np.int64)
        counts[mixed] = end - begin
        row_start = np.concatenate([[0], np.cumsum(counts)])
        document, start, size = (np.empty(row_start[-1], dtype=np.int64) for _ in range(3))
        at = np.repeat(mixed, counts)
        pieces = np.repeat(begin - row_start[:-1][mixed], end - begin) + np.flatnonzero(at)
        place = columns["document"][pieces].astype(np.int64)
        document[at] = self._first_documents[np.repeat(own, end - begin)] + place
        start[at] = self._filled_by(document[at], place) * self.length + columns["offset"][pieces]
        size[at] = columns["size"][pieces]
        document[~at], start[~at] = self._fillers(window[~mixed], (filled - 1 - number)[~mixed])
        size[~at] = self.length
        return Rows(self.length, row_start, document, start, size)

    @cached_property
    def _starts(self) -> dict[str, Int64Array]:
        """The first row, mixed row and piece of each window, and the end of the last: (windows + 1,) each."""
        return {
            name: np.concatenate([[0], np.cumsum(self.columns[name])]) for name in ("rows", "mixed", "pieces")
        }

    @cached_property
    def _first_documents(self) -> Int64Array:
        """The first document of each window, and the end of the last: (windows + 1,)."""
        starts = np.arange(len(self.columns["rows"]) + 1, dtype=np.int64) * self.window
        return np.minimum(starts, len(self.columns["filled"]))

    def _filled_by(self, document: Int64Array, place: Int64Array) -> Int64Array:
        """Whole rows that each document fills, which has a place in its window."""
        before = self.columns["filled"][np.maximum(document - 1, 0)].astype(np.int64)
        return self.columns["filled"][document] - np.where(place, before, 0)

    def _fillers(self, window: Int64Array, number: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(document, start) of the ``number``-th whole row that documents of each window fill."""
        document, start = np.empty_like(window), np.empty_like(window)
        for i, (w, n) in enumerate(zip(window.tolist(), number.tolist(), strict=True)):
            first, last = self._first_documents[w], self._first_documents[w + 1]
            filled = self.columns["filled"][first:last]
            own = int(np.searchsorted(filled, n, side="right"))
            document[i] = first + own
            start[i] = (n - int(filled[own - 1] if own else 0)) * self.length
        return document, start


class CutPlan(RowPlan):
    """All documents concatenated and cut every ``length`` tokens. Column: where each document ``ends``, in tokens."""

    def take(self, rows: Int64Array) -> Rows:
        ends = self.columns["ends"]
        begin = rows * self.length
        end = np.minimum(begin + self.length, self.tokens)
        first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end, side="left")
        counts = last - first + 1
        row = np.repeat(np.arange(len(rows)), counts)
        document = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        document_start = np.where(document > 0, ends[np.maximum(document - 1, 0)], 0)
        start = np.maximum(begin[row], document_start)
        size = np.minimum(end[row], ends[document]) - start
        held = size > 0  # an empty document holds no place in a row
        row_start = np.searchsorted(row[held], np.arange(len(rows) + 1))
        return Rows(
            self.length,
            row_start,
            document[held],
            (start - document_start)[held],
            size[held].astype(np.int64),
        )

    def begins(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(document, token of it), shapes (n,), with which each row begins; behind the last row, where data end."""
        ends, token = self.columns["ends"], np.minimum(rows * self.length, self.tokens)
        document = np.searchsorted(ends, token, side="right")
        start = np.where(document > 0, ends[np.maximum(document - 1, 0)], 0)
        return document, token - start


def open_plan(method: str, length: int, window: int, columns: Columns, tokens: int) -> RowPlan:
    """The plan whose columns these are; ``tokens``: of all documents."""
    if method == "best_fit":
        return BestFitPlan(length, window, columns, int(columns["rows"].sum()), tokens)
    return CutPlan(length, window, columns, -(-tokens // length), tokens)


def pack(
    blocks: Iterable[NDArray[np.integer]], method: str, length: int, window: int = WINDOW
) -> Iterator[tuple[Columns, int]]:
    """(columns, tokens) of one block of documents after the other: the columns of a plan, piece by piece.

    blocks: tokens of each document, (documents,) each; all but the last hold a whole number of windows. Where no
    document fits what is left of a row, more than one slot in 128, the largest one is cut to fill it.
    """
    end = 0
    for block in blocks:
        lengths = np.asarray(block, dtype=np.int64)
        tokens = int(lengths.sum())
        if method == "best_fit":
            yield _pack_block(lengths, length, window), tokens
        else:
            yield {"ends": end + np.cumsum(lengths)}, tokens
        end += tokens


def _pack_block(lengths: Int64Array, length: int, window: int) -> Columns:
    """The columns of a `BestFitPlan` for documents of ``lengths`` (documents,), in numbers as small as can be."""
    windows = -(-len(lengths) // window)
    padded = np.zeros(windows * window, dtype=np.int64)
    padded[: len(lengths)] = lengths
    filled = np.cumsum((padded // length).reshape(windows, window), axis=1)
    rests = (padded % length).astype(np.int32).reshape(windows, window)
    packed = pack_windows(rests, length, tolerance=length // 128)
    token, place = np.min_scalar_type(length), np.min_scalar_type(2 * window)
    return {
        "rows": filled[:, -1] + packed.rows,
        "mixed": packed.rows,
        "pieces": packed.pieces,
        "filled": filled.reshape(-1)[: len(lengths)].astype(np.uint32),  # 2³² rows of a window are terabytes
        "row_first": packed.row_first.astype(place),
        "document": packed.document.astype(place),
        "offset": packed.offset.astype(token),
        "size": packed.size.astype(token),
    }


def find_stretches(
    documents: Int64Array,
    shard_starts: Int64Array,
    shard_stops: Int64Array,
    stretch: int,
    window: int = WINDOW,
) -> tuple[Int64Array, Int64Array]:
    """[first, stop), shapes (n,): the stretch of consecutive documents that each of ``documents`` lies in.

    A window is cut into stretches of ``stretch`` documents, and where shards end: [``shard_starts``, ``shard_stops``)
    is the shard of each. Rows hold documents of one window, so what rows need ends where windows do.
    """
    begin = documents - documents % window
    first = documents - (documents - begin) % stretch
    stop = np.minimum(first + stretch, begin + window)
    return np.maximum(first, shard_starts), np.minimum(stop, shard_stops)


def block_documents(length: int, window: int = WINDOW) -> int:
    """Documents to pack at once: as many windows as memory allows."""
    return window * max(1, BLOCK_BYTES // (48 * window + 8 * length))


def plan_rows(
    blocks: Iterable[NDArray[np.integer]], method: str, length: int, window: int = WINDOW
) -> RowPlan:
    """The plan for blocks of documents, as `pack` takes them, in memory."""
    parts, tokens = zip(*pack(blocks, method, length, window), strict=True)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return open_plan(method, length, window, columns, sum(tokens))
