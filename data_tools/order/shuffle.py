"""Position → sample index, as a pure function of (seed, counts, layout): no I/O, nothing stored per epoch.

Each shard is cut into chunks of ``chunk`` samples; what is left of every shard joins *virtual* chunks, so all
arithmetic is closed-form. Per epoch, chunks are permuted by a keyed Feistel network with cycle walking (Black &
Rogaway, "Ciphers with arbitrary finite domains", 2002), dealt to ``lanes``, and samples are permuted within each
group of ``group`` chunks of a lane. Position p of an epoch belongs to lane p mod lanes; the chunks that do not fill
a round of lanes, and the samples that do not fill a chunk, form a final block with a permutation of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.order.permutation import _GOLDEN, derive_key, mix, permute

Int64Array = NDArray[np.int64]

ORDER_VERSION = 1

# Highly composite, so that lanes divide evenly among 1-6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 120 … ranks.
LANE_COUNTS = (960, 480, 240, 120, 60, 24, 12, 6, 4, 2, 1)

CHUNK_BYTES = 8 << 20  # one range read; 8 MB reads run at the full speed of a disk or an object store

SHUFFLE_MEMORY = 8 << 30  # bytes the whole cluster may keep at hand to shuffle; smaller data shuffle globally


@dataclass(frozen=True)
class Layout:
    """How positions map to chunks: ``lanes`` (C), samples per ``chunk`` (c), chunks per ``group`` (G)."""

    lanes: int
    chunk: int
    group: int

    @property
    def turn(self) -> int:
        """Positions after which every lane has come to its next group; 0 where single samples are shuffled."""
        samples = self.lanes * self.chunk * self.group
        return samples if samples > 1 else 0

    def as_dict(self) -> dict[str, int]:
        """JSON-able."""
        return asdict(self)


def choose_layout(samples: int, sample_bytes: float, memory: int = SHUFFLE_MEMORY) -> Layout:
    """The layout for ``samples`` of ``sample_bytes`` on average, keeping at most ``memory`` bytes at hand."""
    if samples * sample_bytes <= memory:
        return Layout(lanes=1, chunk=1, group=1)  # a permutation over single samples: a global shuffle
    lanes = next((c for c in LANE_COUNTS if c * max(CHUNK_BYTES, sample_bytes) <= memory), 1)
    chunk = max(1, int(min(CHUNK_BYTES, memory / lanes) / sample_bytes))
    group = max(1, int(memory / (lanes * chunk * sample_bytes)))
    return Layout(lanes, chunk, group)


_CHUNKS, _GROUPS, _TAIL = 1, 2, 3  # what a derived key is for

FINAL = -1  # in place of a lane's number: the final block


@dataclass(frozen=True)
class Spots:
    """What positions of one epoch draw from, all of shape (n,): the ``spot``-th sample of a group of ``size``.

    The group is the ``group``-th of ``lane``, or the final block where ``lane`` is FINAL.
    """

    lane: Int64Array
    group: Int64Array
    spot: Int64Array
    size: Int64Array

    def chunk(self, order: Order) -> tuple[Int64Array, Int64Array]:
        """(slot of the chunk in the epoch's permutation, sample within the chunk), shapes (n,)."""
        chunk_in_group, sample = np.divmod(self.spot, order.layout.chunk)
        slot = (self.group * order.layout.group + chunk_in_group) * order.layout.lanes + self.lane
        beyond = order.lane_positions // order.layout.chunk  # slots before the final block
        return np.where(self.lane == FINAL, beyond + chunk_in_group, slot), sample


class Order:
    """The order of all epochs of a data set whose shards hold ``counts`` samples each."""

    def __init__(self, counts: Int64Array, layout: Layout, seed: int) -> None:
        counts = np.asarray(counts, dtype=np.int64)
        self.layout, self.seed = layout, seed
        self.samples = int(counts.sum())
        full = counts // layout.chunk
        self._shard_counts, self._shard_start = counts, _starts(counts)
        self._rest_offset = full * layout.chunk  # where a shard's remainder begins, within the shard
        self._full_start = _starts(full)
        self._rest_start = _starts(counts - self._rest_offset)
        self._full_chunks = int(full.sum())
        self.chunks = self._full_chunks + (self.samples - self._full_chunks * layout.chunk) // layout.chunk
        self.lane_chunks = self.chunks // layout.lanes  # chunks in each lane
        self.lane_positions = (
            self.lane_chunks * layout.lanes * layout.chunk
        )  # positions before the final block

    def indices(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(epoch, sample index) of global positions ≥ 0 (any shape (n,)), counted from the start of the run."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.samples)
        first = int(epochs[0]) if epochs.size else 0
        if (epochs == first).all():
            return epochs, self.epoch_indices(within, first)
        out = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self.epoch_indices(within[here], int(epoch))
        return epochs, out

    def epoch_indices(self, within: Int64Array, epoch: int) -> Int64Array:
        """Sample index of each position 0 ≤ ``within`` < samples of one epoch."""
        if not self.layout.turn:
            return permute(within, self.samples, derive_key(self.seed, epoch, _CHUNKS))
        slot, sample = self.spots(within, epoch).chunk(self)
        return self._sample_index(slot, sample, epoch)

    def spots(self, within: Int64Array, epoch: int) -> Spots:
        """Where in its group, or in the final block, each position 0 ≤ ``within`` < samples of an epoch draws from."""
        lane, group, spot, size = (np.empty_like(within) for _ in range(4))
        in_lanes = within < self.lane_positions
        lane[in_lanes], group[in_lanes], spot[in_lanes], size[in_lanes] = self._lane_spots(
            within[in_lanes], epoch
        )
        lane[~in_lanes], group[~in_lanes] = FINAL, 0
        size[~in_lanes] = rest = self.samples - self.lane_positions
        spot[~in_lanes] = permute(
            within[~in_lanes] - self.lane_positions, rest, derive_key(self.seed, epoch, _TAIL)
        )
        return Spots(lane, group, spot, size)

    def _lane_spots(self, within: Int64Array, epoch: int) -> tuple[Int64Array, ...]:
        lanes, chunk, group = self.layout.lanes, self.layout.chunk, self.layout.group
        step, lane = np.divmod(within, lanes)  # the step-th sample of the lane
        number, offset = np.divmod(step, group * chunk)
        salt = (number * lanes + lane).astype(np.uint64) * np.uint64(_GOLDEN)
        keys = mix(salt + np.uint64(derive_key(self.seed, epoch, _GROUPS)))
        last_group, last_chunks = divmod(self.lane_chunks, group)  # the last group may be shorter
        size = np.where(number < last_group, group, last_chunks) * chunk
        spot = np.empty_like(offset)
        for samples in {group * chunk, last_chunks * chunk}:
            here = size == samples
            spot[here] = permute(offset[here], samples, keys[here])
        return lane, number, spot, size

    def _sample_index(self, slot: Int64Array, sample: Int64Array, epoch: int) -> Int64Array:
        """Index of the ``sample``-th sample of the chunk that the epoch's permutation puts into ``slot``."""
        number = slot.copy()  # slot == chunks stands for the samples that fill no chunk: it stays where it is
        permuted = slot < self.chunks
        number[permuted] = permute(slot[permuted], self.chunks, derive_key(self.seed, epoch, _CHUNKS))
        return self.chunk_samples(number, sample)

    def chunk_samples(self, number: Int64Array, sample: Int64Array) -> Int64Array:
        """Index of the ``sample``-th sample of chunk ``number``, virtual chunks and the unfilled one included."""
        out = np.empty_like(number)
        real = number < self._full_chunks
        shard = np.searchsorted(self._full_start, number[real], side="right") - 1
        chunk_in_shard = number[real] - self._full_start[shard]
        out[real] = self._shard_start[shard] + chunk_in_shard * self.layout.chunk + sample[real]
        rest = (number[~real] - self._full_chunks) * self.layout.chunk + sample[~real]
        shard = np.searchsorted(self._rest_start, rest, side="right") - 1
        out[~real] = self._shard_start[shard] + self._rest_offset[shard] + rest - self._rest_start[shard]
        return out

    def stretch_indices(
        self, spots: Spots, low: Int64Array, high: Int64Array, epoch: int
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """(sample index, first, stop), shapes (n,): the run of indices round each spot that shares its fate.

        These are the samples of its chunk and shard whose spots lie in [``low``, ``high``) of the same group.
        """
        slot, sample = spots.chunk(self)
        index = self._sample_index(slot, sample, epoch)
        begin = spots.spot - sample  # the spot at which the chunk begins
        first = index - sample + np.maximum(low - begin, 0)
        stop = index - sample + np.minimum(high - begin, self.layout.chunk)
        shard = np.searchsorted(self._shard_start, index, side="right") - 1
        start = self._shard_start[shard]
        filled = start + self._rest_offset[shard]  # from here on, samples that belong to a virtual chunk
        first = np.maximum(first, np.where(index >= filled, filled, start))
        return index, first, np.minimum(stop, start + self._shard_counts[shard])

    def state(self) -> dict[str, Any]:
        """What fixes the order, except the position: small, and the same on every rank."""
        return {"order": ORDER_VERSION, "seed": self.seed, "samples": self.samples, **self.layout.as_dict()}


def _starts(counts: Int64Array) -> Int64Array:
    """Exclusive prefix sum; where ``counts`` has zeros, searchsorted(side="right") still finds the right shard."""
    starts = np.zeros(len(counts), dtype=np.int64)
    np.cumsum(counts[:-1], out=starts[1:])
    return starts
