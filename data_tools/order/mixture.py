"""Position → source, such that in every window of positions each source has its share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_tools.order.permutation import derive_key, permute
from data_tools.storage.handles import Recent

Int64Array = NDArray[np.int64]

WINDOW = 1000  # weights are kept to one in a thousand, exactly, in every window

LONGEST_WINDOW = 1_000_000  # 16 MB arranged at once; a share below half of one in that many rounds to none

_MIXING = 5  # what a derived key is for; 1-4 are in permutation.py, shuffle.py and samples.py


def largest_remainder(weights: NDArray[np.float64], total: int) -> Int64Array:
    """Whole numbers that sum to ``total``, as near to proportional as whole numbers can be (Hamilton's method)."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def choose_window(weights: NDArray[np.float64]) -> int | None:
    """Positions in which every weight (sources,) above 0 has its share: 1,000, or ten times as many, and so on.

    None where even the longest window leaves a source without a position.
    """
    window = WINDOW
    while (largest_remainder(weights, window)[weights > 0] == 0).any():
        window *= 10
        if window > LONGEST_WINDOW:
            return None
    return window


class MixingOrder:
    """Position → (source, position in the source): a pure function of the history of weights and the seed."""

    def __init__(
        self,
        history: Sequence[tuple[int, NDArray[np.float64]]],
        seed: int,
        windows: Sequence[int] | None = None,
    ) -> None:
        """``history``: (from this position on, weights (sources,)); ``windows``: positions a window, of each entry."""
        self._seed, self._lengths = seed, list(windows or [WINDOW] * len(history))
        self._starts = np.array([start for start, _ in history], dtype=np.int64)
        self._counts = [
            largest_remainder(weights, length)
            for (_, weights), length in zip(history, self._lengths, strict=True)
        ]
        self._windows = Recent(self._arrange, max(2, 64 * WINDOW // max(self._lengths)))
        self._before = [np.zeros_like(self._counts[0])]  # samples of each source before each change
        for number in range(len(history) - 1):
            positions = int(self._starts[number + 1] - self._starts[number])
            self._before.append(self._before[-1] + self._count(number, positions))

    def _count(self, number: int, positions: int) -> Int64Array:
        """Samples of each source (sources,) in the first positions of a stretch of constant weights."""
        whole, rest = divmod(positions, self._lengths[number])
        source, _ = self._windows((number, whole))
        partial = np.bincount(source[:rest], minlength=len(self._counts[number]))
        return whole * self._counts[number] + partial

    def taken(self, position: int) -> Int64Array:
        """Samples of each source before ``position``, (sources,)."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._before[number] + self._count(number, position - int(self._starts[number]))

    def _arrange(self, which: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """(source, how many of that source come before it in the window) of each slot of a window."""
        number, window = which
        length = self._lengths[number]
        slot = permute(np.arange(length), length, derive_key(self._seed, number, window, _MIXING))
        counts = self._counts[number]
        source = np.searchsorted(np.cumsum(counts), slot, side="right")
        rank = np.empty_like(source)
        for s in range(len(counts)):
            here = source == s
            rank[here] = np.arange(int(here.sum()))
        return source, rank

    def locate(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(source, position in the source), shapes (n,)."""
        part = np.searchsorted(self._starts, positions, side="right") - 1
        window, offset = np.divmod(positions - self._starts[part], np.array(self._lengths)[part])
        sources, inner = np.empty_like(positions), np.empty_like(positions)
        for number, which in np.unique(np.stack([part, window], 1), axis=0).tolist():
            here = (part == number) & (window == which)
            source, rank = self._windows((number, which))
            chosen = source[offset[here]]
            sources[here] = chosen
            inner[here] = (
                self._before[number][chosen] + which * self._counts[number][chosen] + rank[offset[here]]
            )
        return sources, inner
