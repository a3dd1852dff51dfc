"""Documents → rows of a fixed number of tokens: which piece of which document stands in which row. No I/O."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 4096  # documents packed together: enough sizes to choose from for rows that are > 99 % full


@dataclass(frozen=True)
class RowPlan:
    """Row r holds the pieces row_start[r] … row_start[r + 1]: ``size`` tokens of ``document`` from ``start`` on."""

    length: int
    row_start: NDArray[np.int64]  # (rows + 1,)
    document: NDArray[np.int64]  # (pieces,)
    start: NDArray[np.int64]
    size: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.row_start) - 1

    @property
    def efficiency(self) -> float:
        """Real tokens / slots."""
        return float(self.size.sum()) / max(1, self.rows * self.length)


def best_fit_rows(lengths: NDArray[np.integer], length: int, window: int = WINDOW) -> RowPlan:
    """Best-fit decreasing (Johnson, 1974) over windows of consecutive documents, each longer one cut first.

    lengths: tokens of each document, shape (documents,).
    """
    document, start, size = _cut_documents(np.asarray(lengths, dtype=np.int64), length)
    row = np.empty(len(size), dtype=np.int64)
    rows, first = 0, 0
    edges = np.searchsorted(document, np.arange(window, len(lengths) + window, window))
    for last in edges.tolist():
        row[first:last], used = _best_fit(size[first:last], length)
        row[first:last] += rows
        rows, first = rows + used, last
    by_row = np.argsort(row, kind="stable")
    row_start = np.searchsorted(row[by_row], np.arange(rows + 1))
    return RowPlan(length, row_start, document[by_row], start[by_row], size[by_row])


def _cut_documents(
    lengths: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(document, start, size) of the pieces of at most ``length`` tokens; empty documents have none."""
    pieces = -(-lengths // length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * length
    return document, start, np.minimum(lengths[document] - start, length)


def _best_fit(sizes: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], int]:
    """(row of each piece, number of rows) for the pieces of one window."""
    row = np.empty(len(sizes), dtype=np.int64)
    room: list[tuple[int, int]] = []  # (free slots, row), sorted
    rows = 0
    ordered = np.argsort(-sizes, kind="stable")
    for piece, size in zip(ordered.tolist(), sizes[ordered].tolist(), strict=True):
        at = bisect_left(room, (size, -1))
        if at < len(room):
            free, chosen = room.pop(at)
        else:
            free, chosen, rows = length, rows, rows + 1
        row[piece] = chosen
        if free > size:
            insort(room, (free - size, chosen))
    return row, rows


def cut_rows(lengths: NDArray[np.integer], length: int) -> RowPlan:
    """Concatenate all documents and cut every ``length`` tokens; only the last row may be short."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    total = int(ends[-1]) if len(ends) else 0
    rows = -(-total // length)
    # a piece begins where a document or a row begins
    cuts = np.unique(np.concatenate([np.arange(rows) * length, ends[ends < total], [0]]))[
        : None if total else 0
    ]
    document = np.searchsorted(ends, cuts, side="right")
    starts = ends - np.asarray(lengths, dtype=np.int64)
    size = np.diff(np.append(cuts, total))
    row_start = np.searchsorted(cuts, np.arange(rows + 1) * length)
    return RowPlan(length, row_start, document, cuts - starts[document], size)
