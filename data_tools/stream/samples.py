"""The sample at a global position: a pure function of (seed, data set, position)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import Damage, DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.order.permutation import derive_key
from data_tools.order.sharing import Runs, find_runs
from data_tools.order.shuffle import SHUFFLE_MEMORY, Layout, Order, choose_layout
from data_tools.storage.prefetch import Needs, ReadAhead, positions_ahead
from data_tools.storage.urls import redacted

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

ATTEMPTS = 32  # stand-ins tried for one damaged sample before the data set is given up

_STAND_IN = 4  # what a derived key is for; 1-3 are in shuffle.py


class Stream:
    """The endless, shuffled sequence of a data set's samples.

    ``memory``: bytes the cluster may keep at hand to shuffle; ``layout`` overrides what is chosen from it. Both
    change the order, so they belong to the state.
    """

    def __init__(
        self, dataset: Dataset, seed: int = 0, memory: int = SHUFFLE_MEMORY, layout: Layout | None = None
    ) -> None:
        if not len(dataset):
            raise UserError("the data set is empty; a stream needs at least one sample")
        self.dataset, self.seed, self.memory = dataset, seed, memory
        chosen = layout or choose_layout(len(dataset), dataset.sample_bytes, memory)
        self.order = Order(dataset.counts, chosen, seed)
        self.samples_per_epoch = len(dataset)
        self.fingerprint = dataset.fingerprint
        self._keys_repeat: bool | None = None  # None: nobody has looked yet
        self.share_among(1, 0)
        dataset.use_segments(chosen.chunk, chosen.lanes * chosen.group)

    def sample(self, position: int) -> Sample:
        """The sample at a position ≥ 0, with ``__epoch__``; a damaged one is replaced and listed in ``__damage__``."""
        return next(self.samples(np.array([position], dtype=np.int64)))

    def samples(self, positions: Int64Array) -> Iterator[Sample]:
        """The samples at many positions, shape (n,): the order is computed for all of them at once."""
        runs = self._runs(positions)
        epochs, indices = self.order.indices(positions) if runs is None else (runs.epoch, runs.index)
        shards, numbers = self.dataset.locate(indices)
        together = self.dataset.find_together(shards, numbers, runs)
        rows = zip(
            positions.tolist(), epochs.tolist(), shards.tolist(), numbers.tolist(), together, strict=True
        )
        by_shard, read = self.keys_repeat, self.dataset.read
        for position, epoch, shard, number, run in rows:
            try:
                sample = read(shard, number, run)
                if by_shard:
                    draw_by_shard(sample, shard)
            except DamagedSampleError as error:
                other = next(self.stand_ins(position, error), None)
                if other is None:
                    raise UserError(
                        f"{error}; {ATTEMPTS} stand-ins failed too; run `python -m data_tools verify` on the data"
                    ) from None
                sample = other
            sample["__epoch__"] = epoch
            yield sample

    def share_among(self, nodes: int, node: int) -> None:
        """Say which of how many nodes reads here: what is fetched with a sample depends on it, and nothing else."""
        self._nodes, self._node = nodes, node

    def homes(self, positions: Int64Array, nodes: int) -> Int64Array | None:
        """Which of ``nodes`` best takes each position, shape (n,); None where it makes no difference."""
        return find_runs(self.order, positions, nodes).home if self._has_runs else None

    @property
    def _has_runs(self) -> bool:
        return self.dataset.remote and self.order.layout.turn > 0

    def _runs(self, positions: Int64Array) -> Runs | None:
        """What this node fetches with the sample at each position; None where it goes by the chunks of each shard."""
        return find_runs(self.order, positions, self._nodes, self._node) if self._has_runs else None

    def read_ahead(self) -> ReadAhead | None:
        """What fetches remote samples before they are needed; None when everything lies on this machine."""
        if not self.dataset.remote:
            return None
        ahead = positions_ahead(self.dataset.sample_bytes, self.samples_per_epoch)
        return ReadAhead(self.needs, self.samples_per_epoch, ahead, self.order.layout.turn)

    def needs(self, positions: Int64Array) -> Needs:
        """What is fetched for ``positions`` ≥ 0, shape (n,), ascending: (cache, segment, position that needs it)."""
        runs = self._runs(positions)
        epochs, indices = self.order.indices(positions) if runs is None else (runs.epoch, runs.index)
        return self.dataset.segments(indices, epochs, positions, runs)

    def shards(self, positions: Int64Array) -> list[list[str]]:
        """The shard of each sample at ``positions``; of a damaged one, its own and not its stand-in's."""
        _, indices = self.order.indices(positions)
        shards, _ = self.dataset.locate(indices)
        return [[redacted(self.dataset.manifest.urls[shard])] for shard in shards.tolist()]

    def readable(self, positions: Int64Array) -> Int64Array:
        """Those of ``positions`` (n,) whose sample is not marked by `verify`."""
        _, indices = self.order.indices(positions)
        return positions[~np.isin(indices, self.dataset.marked)]

    def stand_ins(self, position: int, error: DamagedSampleError) -> Iterator[Sample]:
        """Other samples for the place of a damaged or incomplete one, in a fixed order; the others keep theirs.

        Each lists in ``__damage__`` what it stands in for. They end after ``ATTEMPTS`` at most.
        """
        damages = [Damage.at(position, error)]
        for attempt in range(ATTEMPTS):
            index = derive_key(self.seed, position, attempt, _STAND_IN) % len(self.dataset)
            try:
                shards, numbers = self.dataset.locate(np.array([index], dtype=np.int64))
                sample = self.dataset.read(int(shards[0]), int(numbers[0]))
            except DamagedSampleError:
                continue
            if self.keys_repeat:
                draw_by_shard(sample, int(shards[0]))
            sample["__damage__"] = damages
            sample["__epoch__"] = position // self.samples_per_epoch
            yield sample

    @property
    def keys_repeat(self) -> bool:
        """Whether the shard belongs to what a sample's random numbers are drawn by, because its key repeats."""
        if self._keys_repeat is None:
            self._keys_repeat = self.dataset.keys_repeat
        return self._keys_repeat

    def state(self) -> dict[str, Any]:
        """What order and random numbers depend on, except the position: small, JSON-able, equal on all ranks."""
        keys = {"keys": "repeat"} if self.keys_repeat else {}
        return {"fingerprint": self.fingerprint, **self.order.state(), **keys}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go by the name that a saved state has for these very data, and draw random numbers as its run did.

        Until lately that was by the key alone.
        """
        self.fingerprint = recognise(self.dataset, state)
        self._keys_repeat = state.get("keys") == "repeat"


def recognise(dataset: Dataset, state: Mapping[str, Any]) -> str:
    """The fingerprint that a saved state has for a data set, if it is one of these data from when less was known.

    Data that were indexed without CRC go on as the same ones when their CRC is taken; the reverse does not hold.
    """
    saved = str(state.get("fingerprint", ""))
    if saved in ("", dataset.fingerprint) or not dataset.was_called(saved):
        return dataset.fingerprint
    log.info("%s: the saved state knows these data by their layout, as %s", dataset.fingerprint, saved)
    return saved


def draw_by_shard(sample: Sample, shard: int) -> None:
    """Let the shard's number, too, decide a sample's random numbers; in the first shard its key alone does, as ever."""
    if shard:
        sample["__drawn_by__"] = f"{shard}\0{sample['__key__']}"
