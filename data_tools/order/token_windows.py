"""Best fit over windows of equally many tokens, each of which makes equally many rows: version 2 of packing. No I/O.

All documents end to end are cut into windows, so a document that lies over the end of one has a *part* in each. As a
row leaves at most ``slack // rows`` slots empty before a document is cut to fill it, a window with ``slack`` tokens
fewer than its rows have slots makes exactly these rows. So the rows of a window, and no others, need one stretch of the
data, which is what a node fetches: see `window_order`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_tools.order import packing
from data_tools.order.best_fit import pack_windows
from data_tools.order.packing import BestFitPlan, Columns, Rows

Int64Array = NDArray[np.int64]

TOKEN_WINDOWS = "token_windows"
"""The method's name in tables."""


def count_window_tokens(rows: int, length: int) -> int:
    """Tokens of a window of ``rows``, of which at most one slot in 256 stays empty, and less than one row."""
    return rows * length - _slack(rows, length)


def _slack(rows: int, length: int) -> int:
    return min(length - 1, rows * length // 256)


class TokenWindowPlan(BestFitPlan):
    """A `BestFitPlan` of the parts of documents; ``window``: rows of each but the last.

    Further columns, of each window: how many ``parts`` it has, the ``first`` document with a part in it, and how many
    tokens of that are ``used`` before it.
    """

    @cached_property
    def _first_documents(self) -> Int64Array:
        return np.concatenate([[0], np.cumsum(self.columns["parts"])])

    def take(self, rows: Int64Array) -> Rows:
        taken = super().take(rows)
        window = np.searchsorted(self._first_documents, taken.document, side="right") - 1
        place = taken.document - self._first_documents[window]
        document = self.columns["first"][window] + place
        start = taken.start + np.where(place, 0, self.columns["used"][window])
        return Rows(self.length, taken.row_start, document, start, taken.size)

    def begins(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(document, token of it), shapes (n,), with which the window begins whose first row each of ``rows`` is.

        Behind the last window it is where the data end.
        """
        window = -(-rows // self.window)
        first, used, parts = (self.columns[name] for name in ("first", "used", "parts"))
        inside = np.minimum(window, len(first) - 1)
        behind = window >= len(first)
        return first[inside] + np.where(behind, parts[inside], 0), np.where(behind, 0, used[inside])


def pack_token_windows(
    blocks: Iterable[NDArray[np.integer]], length: int, rows: int
) -> Iterator[tuple[Columns, int]]:
    """As `pack`, into windows of ``rows`` rows; blocks may be of any size."""
    capacity = count_window_tokens(rows, length)
    left = np.zeros(
        0, dtype=np.int64
    )  # tokens of documents in the window that the blocks so far have not filled
    first, used, windows = (
        0,
        0,
        0,
    )  # its first document, how many tokens of that lie before it, windows before it
    for block in blocks:
        left = np.concatenate([left, np.asarray(block, dtype=np.int64)])
        ends = np.cumsum(left)
        whole = int(ends[-1]) // capacity if len(ends) else 0
        if not whole:
            continue
        done = int(
            np.searchsorted(ends, whole * capacity, side="right")
        )  # documents that end in whole windows
        over = whole * capacity - (
            int(ends[done - 1]) if done else 0
        )  # tokens of the next one that lie there
        for parts in _cut(np.append(left[:done], over) if over else left[:done], first, used, capacity).group(
            length
        ):
            yield _pack_parts(parts, length, rows), int(parts.size.sum())
        left = left[done:].copy()
        left[:1] -= over
        first, used, windows = first + done, over if done else used + over, windows + whole
    if left.any() or not windows:
        yield _pack_parts(_cut(left, first, used, capacity), length, rows), int(left.sum())


def plan_token_windows(blocks: Iterable[NDArray[np.integer]], length: int, rows: int) -> TokenWindowPlan:
    """The plan for blocks of documents, in memory."""
    parts, tokens = zip(*pack_token_windows(blocks, length, rows), strict=True)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return TokenWindowPlan(length, rows, columns, int(columns["rows"].sum()), sum(tokens))


@dataclass(frozen=True)
class _Parts:
    """Parts of documents in some windows, one window after the other; see `TokenWindowPlan`."""

    size: Int64Array  # (parts,)
    count: Int64Array  # (windows,)
    first: Int64Array  # (windows,)
    used: Int64Array  # (windows,)

    def group(self, length: int) -> Iterator[_Parts]:
        """The same in groups of windows, as many as can be packed at once in the memory allowed."""
        ends = np.cumsum(self.count)
        window = np.repeat(np.arange(len(self.count)), self.count)
        widths = np.bincount(window, self.size % length > 0, len(self.count))
        most, begin = max(1, packing.BLOCK_BYTES // (48 + 8 * length)), 0
        while begin < len(self.count):
            width = np.maximum.accumulate(widths[begin : begin + most])
            needed = np.arange(1, len(width) + 1) * (48 * width + 8 * length)
            end = begin + max(1, int(np.searchsorted(needed, packing.BLOCK_BYTES, side="right")))
            here = slice(begin, end)
            parts = slice(int(ends[begin] - self.count[begin]), int(ends[end - 1]))
            yield _Parts(self.size[parts], self.count[here], self.first[here], self.used[here])
            begin = end


def _cut(lengths: Int64Array, first: int, used: int, capacity: int) -> _Parts:
    """Documents of ``lengths`` cut every ``capacity`` tokens.

    They are counted from ``first`` on, of which ``used`` tokens went before.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    windows = max(1, -(-int(ends[-1]) // capacity))
    begins_in = np.minimum(
        starts // capacity, windows - 1
    )  # an empty document at the very end has no window of its own
    many = np.maximum((ends - 1) // capacity, begins_in) - begins_in + 1
    document = np.repeat(np.arange(len(lengths)), many)
    window = np.arange(len(document)) - np.repeat(np.cumsum(many) - many - begins_in, many)
    begin = np.maximum(starts[document], window * capacity)
    size = np.minimum(ends[document], (window + 1) * capacity) - begin
    count = np.bincount(window, minlength=windows)
    at = np.cumsum(count) - count
    before = begin[at] - starts[document[at]] + np.where(document[at], 0, used)
    return _Parts(size, count, first + document[at], before)


def _pack_parts(parts: _Parts, length: int, rows: int) -> Columns:
    """The columns of a `TokenWindowPlan` for these windows, in numbers as small as any window's."""
    windows, starts = len(parts.count), np.cumsum(parts.count) - parts.count
    window = np.repeat(np.arange(windows), parts.count)
    filled = np.cumsum(parts.size // length)
    filled -= (filled[starts] - parts.size[starts] // length)[window]
    held = np.flatnonzero(parts.size % length)  # what exceeds whole rows is packed
    many = np.bincount(window[held], minlength=windows)
    first_held = np.cumsum(many) - many
    rests = np.zeros((windows, max(1, int(many.max()))), dtype=np.int32)
    rests[window[held], np.arange(len(held)) - first_held[window[held]]] = parts.size[held] % length
    packed = pack_windows(rests, length, tolerance=_slack(rows, length) // rows)
    part = held[np.repeat(first_held, packed.pieces) + packed.document]
    token = np.min_scalar_type(length)
    return {
        "parts": parts.count,
        "first": parts.first,
        "used": parts.used,
        "rows": filled[starts + parts.count - 1] + packed.rows,
        "mixed": packed.rows,
        "pieces": packed.pieces,
        "filled": filled.astype(np.min_scalar_type(rows)),
        "row_first": packed.row_first.astype(np.min_scalar_type(2 * rows * length)),
        "document": (part - np.repeat(starts, packed.pieces)).astype(np.uint32),  # empty ones may be many
        "offset": packed.offset.astype(token),
        "size": packed.size.astype(token),
    }
