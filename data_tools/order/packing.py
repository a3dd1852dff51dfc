"""Documents → rows of a fixed number of tokens: which piece of which document stands in which row. No I/O."""

from __future__ import annotations

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


def best_fit_rows(
    lengths: NDArray[np.integer], length: int, window: int = WINDOW, whole: bool = False
) -> RowPlan:
    """Best fit over windows of consecutive documents; what is longer than a row is cut first.

    Where no document fits what is left of a row, more than one slot in a hundred, the largest one is cut to fill it,
    unless documents are to stay ``whole``. lengths: tokens of each document, shape (documents,).
    """
    document, start, size = _cut_documents(np.asarray(lengths, dtype=np.int64), length)
    tolerance = length if whole else length // 128
    pieces: list[_Piece] = []
    rows, first = 0, 0
    for last in np.searchsorted(document, np.arange(window, len(lengths) + window, window)).tolist():
        part = slice(first, last)
        packed, used = _best_fit(document[part], start[part], size[part], length, tolerance)
        pieces += [(rows + row, d, at, n) for row, d, at, n in packed]
        rows, first = rows + used, last
    table = np.array(pieces, dtype=np.int64).reshape(-1, 4)
    row_start = np.searchsorted(table[:, 0], np.arange(rows + 1))
    return RowPlan(length, row_start, *(np.ascontiguousarray(table[:, i]) for i in (1, 2, 3)))


def _cut_documents(
    lengths: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(document, start, size) of the pieces of at most ``length`` tokens; empty documents have none."""
    pieces = -(-lengths // length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * length
    return document, start, np.minimum(lengths[document] - start, length)


_Piece = tuple[int, int, int, int]  # row, document, start, size


def _best_fit(
    document: NDArray[np.int64],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
    length: int,
    tolerance: int,
) -> tuple[list[_Piece], int]:
    """(pieces in the order of their rows, number of rows) of one window.

    Each row begins with the largest piece left, goes on with pieces that leave room for a whole number of average
    ones, and ends with the two that fill it best: documents of similar sizes, of which plain best-fit leaves
    remainders too small for any, fill rows this way.
    """
    pools: list[list[tuple[int, int]]] = [[] for _ in range(length + 1)]  # (document, start) of each size
    for d, at, n in zip(document.tolist(), start.tolist(), size.tolist(), strict=True):
        pools[n].append((d, at))
    counts = np.array([len(pool) for pool in pools])
    left, total = len(size), int(size.sum())
    pieces: list[_Piece] = []
    row = 0
    while left:
        room = length
        chosen = [int(np.flatnonzero(counts)[-1])]
        while chosen:
            for n in chosen:
                d, at = pools[n].pop()
                counts[n] -= 1
                pieces.append((row, d, at, n))
                left, total, room = left - 1, total - n, room - n
            chosen = _next_sizes(counts, room, left, total) if left and room else []
            if not chosen and left and room > tolerance:  # nothing fits: cut the largest to fill the row
                n = int(np.flatnonzero(counts)[-1])
                d, at = pools[n].pop()
                pieces.append((row, d, at, room))
                pools[n - room].append((d, at + room))
                counts[n] -= 1
                counts[n - room] += 1
                total -= room
        row += 1
    return pieces, row


def _next_sizes(counts: NDArray[np.int64], room: int, left: int, total: int) -> list[int]:
    """Sizes of the pieces to put next into a row with ``room`` slots; none when nothing fits."""
    available = np.flatnonzero(counts[: room + 1])
    if not len(available):
        return []
    if 2 * room * left >= 5 * total:  # room for two and a half average pieces, or more
        target = room // ((2 * room * left + total) // (2 * total))
        return [int(available[np.abs(available - target).argmin()])]
    partner = (
        np.searchsorted(available, room - available, side="right") - 1
    )  # the largest that still fits beside each
    alone = (partner < 0) | ((available[partner] == available) & (counts[available] < 2))
    sums = available + np.where(alone, 0, available[partner])
    best = int(sums.argmax())
    return [int(available[best])] if alone[best] else [int(available[best]), int(available[partner[best]])]


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
