"""Position → source, such that in every window of positions each source has its share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_tools.order.permutation import derive_key, permute
from data_tools.storage.handles import Recent

Int64Array = NDArray[np.int64]

WINDOW = 1000  # weights are kept to one in a thousand, exactly, in every window

_MIXING = 5  # what a derived key is for; 1-4 are in permutation.py, shuffle.py and samples.py


def largest_remainder(weights: NDArray[np.float64], total: int) -> Int64Array:
    """Whole numbers that sum to ``total``, as near to proportional as whole numbers can be (Hamilton's method)."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


class MixingOrder:
    """Position → (source, position in the source): a pure function of the history of weights and the seed."""

    def __init__(
        self, history: list[tuple[int, NDArray[np.float64]]], seed: int, window: int = WINDOW
    ) -> None:
        self._seed, self._window = seed, window
        self._starts = np.array([start for start, _ in history], dtype=np.int64)
        self._counts = [largest_remainder(weights, window) for _, weights in history]
        self._windows = Recent(self._arrange, 64)
        self._before = [np.zeros_like(self._counts[0])]  # samples of each source before each change
        for number in range(len(history) - 1):
            windows, rest = divmod(int(self._starts[number + 1] - self._starts[number]), window)
            source, _ = self._windows((number, windows))
            partial = np.bincount(source[:rest], minlength=len(self._counts[0]))
            self._before.append(self._before[-1] + windows * self._counts[number] + partial)

    def _arrange(self, which: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """(source, how many of that source come before it in the window) of each slot of a window."""
        number, window = which
        slot = permute(np.arange(self._window), self._window, derive_key(self._seed, number, window, _MIXING))
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
        window, offset = np.divmod(positions - self._starts[part], self._window)
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
