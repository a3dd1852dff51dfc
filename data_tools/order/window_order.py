"""Position → row where rows come in windows of equally many: version 2 of the order, of packed rows. No I/O.

A window is fetched by one node, so every window that is being read is a lane of its own, and lane l of a turn belongs
to node l mod n. Any stretch of positions then has as many for each node, where n divides the lanes. Where s of them are
left over, s (n - s) / n positions are handed on each time that the lanes begin again, n / 4 at most. So there are many
lanes, of small windows.

``group`` windows lie side by side in the data, and these blocks are what is permuted. Their windows become lanes as far
from each other as can be, so that one node has them, which fetches them at once, where n divides this distance.
The last two turns are equally long, so that few lanes are never left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.order.permutation import _GOLDEN, derive_key, mix, permute
from data_tools.order.sharing import FREE
from data_tools.order.shuffle import SHUFFLE_MEMORY

Int64Array = NDArray[np.int64]

WINDOWS_VERSION = 2
"""Of the order."""

LANE_COUNTS = (*(45 << k for k in range(9, -1, -1)), 24, 12, 8, 6, 4, 2, 1)  # 23,040: by 512, 9 and 5

WINDOW_BYTES = SHUFFLE_MEMORY // LANE_COUNTS[0]  # 364 KiB

WINDOW_ROWS = 4
"""At least, of whatever bytes: with fewer, each window's end would cut too many documents."""

BLOCK = 8
"""Windows side by side, where lanes are many: a request of 3 MB."""

_BLOCKS, _ROWS, _TAIL = 6, 7, 8  # what a derived key is for; 1-5 are in other modules


@dataclass(frozen=True)
class WindowLayout:
    """How positions map to windows of ``chunk`` rows: ``lanes`` at a time, ``group`` of them side by side."""

    lanes: int
    chunk: int
    group: int

    @property
    def turn(self) -> int:
        """Positions after which every lane has come to its next window."""
        return self.lanes * self.chunk

    def as_dict(self) -> dict[str, int]:
        """JSON-able."""
        return asdict(self)


def count_window_rows(tokens: int, data_bytes: int, length: int) -> int:
    """Rows of a window of about `WINDOW_BYTES`, where all ``tokens`` take ``data_bytes``."""
    return max(WINDOW_ROWS, WINDOW_BYTES * tokens // (data_bytes * length))


def choose_window_layout(rows: int, row_bytes: float, memory: int = SHUFFLE_MEMORY) -> WindowLayout:
    """The layout for windows of ``rows`` rows, keeping at most ``memory`` bytes at hand."""
    lanes = next((lanes for lanes in LANE_COUNTS if lanes * rows * row_bytes <= memory), 1)
    return WindowLayout(lanes, rows, gcd(lanes, BLOCK))


@dataclass(frozen=True)
class WindowRuns:
    """Where the rows at some positions are, all of shape (n,).

    ``home``: the node that fetches the windows ``first`` ≤ w < ``first + many`` at once, ``row``'s among them; or FREE.
    """

    epoch: Int64Array
    row: Int64Array
    home: Int64Array
    first: Int64Array
    many: Int64Array


class WindowOrder:
    """The order of all epochs of ``samples`` rows."""

    def __init__(self, samples: int, layout: WindowLayout, seed: int) -> None:
        self.samples, self.layout, self.seed = samples, layout, seed
        self._block_rows = layout.chunk * layout.group
        self.blocks = samples // self._block_rows
        self._turn = layout.lanes // layout.group  # blocks of a turn
        full = max(0, -(-self.blocks // self._turn) - 2)
        self._full = full * self._turn  # blocks of all turns but the last two, or the only one
        rest = self.blocks - self._full
        half = rest if rest <= self._turn else -(-rest // 2)
        self._halves = np.array([half, rest - half])
        self._places = _reverse_bits(layout.group)  # which window of its block a lane has

    def indices(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(epoch, row) of global positions ≥ 0, shape (n,), counted from the start of the run."""
        runs = self.find_runs(positions)
        return runs.epoch, runs.row

    def homes(self, positions: Int64Array, nodes: int) -> Int64Array:
        """Which of ``nodes`` fetches the window of each position, shape (n,), or FREE."""
        lane = self._lanes(positions % self.samples)[0]
        return np.where(lane < 0, FREE, lane % nodes)

    def find_runs(self, positions: Int64Array, nodes: int = 1) -> WindowRuns:
        """What ``nodes`` fetch for the rows at ``positions`` ≥ 0, shape (n,)."""
        epochs, within = np.divmod(positions, self.samples)
        row, first = np.empty_like(within), np.empty_like(within)
        lane, begin, step, blocks = self._lanes(within)
        many = np.ones_like(within)
        for windows in (2, 4, 8):
            if windows <= self.layout.group:  # side by side, so many blocks of lanes apart
                many[blocks * (self.layout.group // windows) % nodes == 0] = windows
        for epoch in np.unique(epochs).tolist():
            here = (epochs == epoch) & (lane >= 0)
            sub, slot = np.divmod(lane[here], blocks[here])
            key = derive_key(self.seed, epoch, _BLOCKS)
            block = permute(begin[here] + slot, self.blocks, key)
            window = block * self.layout.group + self._places[sub]
            salt = (begin[here] * self.layout.group + lane[here]).astype(np.uint64) * np.uint64(_GOLDEN)
            keys = mix(salt + np.uint64(derive_key(self.seed, epoch, _ROWS)))
            row[here] = window * self.layout.chunk + permute(step[here], self.layout.chunk, keys)
            first[here] = window - window % many[here]
            tail, start = (epochs == epoch) & (lane < 0), self.blocks * self._block_rows
            key = derive_key(self.seed, epoch, _TAIL)
            row[tail] = start + permute(within[tail] - start, self.samples - start, key)
            first[tail] = row[tail] // self.layout.chunk
        return WindowRuns(epochs, row, np.where(lane < 0, FREE, lane % nodes), first, many)

    def _lanes(self, within: Int64Array) -> tuple[Int64Array, ...]:
        """(lane, first block of its turn, row of the lane, blocks of the turn) of positions of an epoch, shape (n,).

        The lane is -1 for the last rows, which fill no block.
        """
        block = within // self._block_rows
        late = block >= self._full
        second = late & (block >= self._full + self._halves[0])
        begin = np.where(late, self._full + self._halves[0] * second, block - block % self._turn)
        blocks = np.where(late, self._halves[second.astype(np.int64)], self._turn)
        blocks = np.maximum(blocks, 1)
        step, lane = np.divmod(within - begin * self._block_rows, blocks * self.layout.group)
        return np.where(block < self.blocks, lane, -1), begin, step, blocks

    def state(self) -> dict[str, Any]:
        """What fixes the order, except the position: small, and the same on every rank."""
        return {"order": WINDOWS_VERSION, "seed": self.seed, "samples": self.samples, **self.layout.as_dict()}


def _reverse_bits(count: int) -> Int64Array:
    """The numbers below a power of two in the order of their bits read backwards."""
    numbers = np.zeros(1, dtype=np.int64)
    while len(numbers) < count:
        numbers = np.concatenate([2 * numbers, 2 * numbers + 1])
    return numbers
