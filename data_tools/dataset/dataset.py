"""A data set: samples by index, in manifest order, from plain WebDataset tars read in place."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.reader import Run, Store
from data_tools.decode.kinds import field_names
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import Sample, decode_sample
from data_tools.errors import UserError
from data_tools.formats.manifest import LAYOUT_ONLY, Manifest
from data_tools.formats.marks import Mark
from data_tools.formats.sidecar import Sidecar
from data_tools.order.sharing import Runs
from data_tools.storage import counters
from data_tools.storage.prefetch import Needs
from data_tools.storage.segments import FetchOptions

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

KEYS_AT_ONCE = 32
"""Of remote samples, each of which takes a round trip."""


class Dataset:
    """Valid samples of a manifest, or of a selection of it, by index; see ``open_dataset``."""

    def __init__(self, store: Store, options: DecodeOptions, indices: Int64Array | None = None) -> None:
        self._store, self.options, self._indices = store, options, indices
        ends = np.cumsum(store.manifest.counts)
        self._starts = ends - store.manifest.counts  # first index of each shard, shape (shards,)
        self._total = int(ends[-1]) if len(ends) else 0

    @property
    def store(self) -> Store:
        """The shards and sidecars that the samples are read from."""
        return self._store

    @property
    def manifest(self) -> Manifest:
        """The shards, with their counts, sizes and checksums; whatever is selected."""
        return self._store.manifest

    @property
    def folder(self) -> Path | None:
        """The folder of the manifest."""
        return self._store.folder

    def __len__(self) -> int:
        return self._total if self._indices is None else len(self._indices)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits, after ``layout-`` where no CRC was taken; marks of `verify` do not change it."""
        return self._fingerprint_of(self.manifest.fingerprint)

    def _fingerprint_of(self, whole: str) -> str:
        """That of this selection, where ``whole`` is that of all samples."""
        if self._indices is None:
            return whole
        digits = whole.removeprefix(LAYOUT_ONLY)
        digest = hashlib.blake2b(bytes.fromhex(digits), digest_size=16)
        digest.update(self._indices.astype("<i8").tobytes())
        return f"{whole.removesuffix(digits)}{digest.hexdigest()}"

    def was_called(self, fingerprint: str) -> bool:
        """Whether these data had that fingerprint when less was known of them (no CRC). Reads every sidecar."""
        return fingerprint in map(self._fingerprint_of, self._store.former_fingerprints())

    @property
    def knows_content(self) -> bool:
        """Whether the fingerprint is one of the samples' bytes, and not of the layout only."""
        return self._store.knows_content

    @property
    def fetching(self) -> FetchOptions:
        """How remote shards are read."""
        return self._store.fetching

    @property
    def base(self) -> str:
        """URL of the manifest's folder; "" where that is on this machine."""
        return self._store.base

    @property
    def marked(self) -> Int64Array:
        """Indices of the samples that `verify` marked as bad, ascending: reading them raises."""
        return self.indices_of(mark for rows in self._store.marks.values() for mark in rows.values())

    def indices_of(self, marks: Iterable[Mark]) -> Int64Array:
        """Indices of marked samples, ascending; those that are not selected are left out."""
        numbers = [int(self._starts[mark.shard]) + self._store.number(mark.shard, mark.row) for mark in marks]
        whole = np.sort(np.array(numbers, dtype=np.int64))
        return whole if self._indices is None else np.flatnonzero(np.isin(self._indices, whole))

    def unmarked(self) -> Dataset:
        """The samples that are not marked, for a pass that needs no order of before: itself where none is."""
        marked = self.marked
        return self.select(np.setdiff1d(np.arange(len(self)), marked)) if len(marked) else self

    @property
    def fields(self) -> dict[str, str]:
        """Field → extension of what a sample may have, such as ``{"image": "png", "label": "cls"}``."""
        return {name: extension for extension, name in field_names(self.manifest.extensions).items()}

    @property
    def whole(self) -> bool:
        """Whether these are all valid samples of the manifest, one after another."""
        return self._indices is None

    @cached_property
    def counts(self) -> Int64Array:
        """Samples in each stretch of indices that lies in one shard; sums to ``len(self)``."""
        if self._indices is None:
            return self.manifest.counts
        shards, _ = self.locate(np.arange(len(self)))
        if (np.diff(shards) < 0).any():
            return np.array([len(self)], dtype=np.int64)
        return np.bincount(shards, minlength=len(self.manifest.urls)).astype(np.int64)

    @property
    def sample_bytes(self) -> float:
        """Mean bytes of a sample on disk."""
        return float(self.manifest.bytes.sum()) / max(1, int(self.manifest.samples.sum()))

    @property
    def lengths(self) -> NDArray[np.uint32] | None:
        """The length column (tokens, frames) of every sample, shape (len,), or None when it is not known."""
        return self.read_lengths(0, len(self)) if self.manifest.has_length else None

    def read_lengths(self, first: int, last: int) -> NDArray[np.uint32]:
        """The lengths of the samples ``first`` ≤ index < ``last``; raises UserError where a sidecar has none."""
        shards, numbers = self.locate(np.arange(first, last))
        self._store.copy_sidecars(np.unique(shards).tolist())
        lengths = np.empty(len(shards), dtype=np.uint32)
        order = np.argsort(shards, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if not here.size:
                continue
            shard = int(shards[here[0]])
            sidecar = self._store.sidecar(shard)
            if sidecar.length is None:
                raise UserError(
                    f"{self.manifest.urls[shard]}: its sidecar has no lengths, though the manifest says so; "
                    "tokenize the data again"
                )
            lengths[here] = sidecar.length[sidecar.valid != 0][numbers[here]]
        return lengths

    def select(self, indices: Sequence[int] | Int64Array) -> Dataset:
        """The samples at ``indices`` (any order, repeats allowed) as a data set with its own fingerprint."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise IndexError(f"indices must lie in [0, {len(self)}), got {chosen.min()} … {chosen.max()}")
        if self._indices is not None:
            chosen = self._indices[chosen]
        return Dataset(self._store, self.options, chosen)

    def where(self, expression: str, processes: int | None = None) -> Dataset:
        """The samples for which an expression holds, such as ``"year >= 1900 and label in (1, 2)"``; each is read once.

        Args:
            expression: over ``key``, ``label``, ``class_name``, ``shard``, ``size`` (bytes), ``length`` and the fields
                of the samples' JSON.
            processes: that read; None is one a core, unless the data are small.
        Raises:
            UserError: it is no expression, names a column that no sample has, or holds for no sample.
        """
        from data_tools.dataset.where import find_where

        return self.select(find_where(self, expression, processes).indices)

    def with_options(self, options: DecodeOptions) -> Dataset:
        """The same samples, decoded with other options."""
        return Dataset(self._store, options, self._indices)

    def locate(self, indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(shard, number within the shard's valid samples) of each index, shapes (n,)."""
        if self._indices is not None:
            indices = self._indices[indices]
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        return shards, indices - self._starts[shards]

    def numbers_in(self, shard: int) -> Int64Array:
        """Which of a shard's valid samples are selected, shape (n,)."""
        if self._indices is None:
            return np.arange(self.manifest.counts[shard])
        numbers = self._indices - self._starts[shard]
        return np.unique(numbers[(numbers >= 0) & (numbers < self.manifest.counts[shard])])

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        shards, numbers = self.locate(np.array([index % len(self)], dtype=np.int64))
        return self.read(int(shards[0]), int(numbers[0]))

    def __iter__(self) -> Iterator[Sample]:
        """All samples but the marked ones, in manifest order; raises DamagedSampleError."""
        readable = self.unmarked()
        for start in range(0, len(readable), 4096):
            shards, numbers = readable.locate(np.arange(start, min(start + 4096, len(readable))))
            for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
                yield self.read(shard, number)

    def keys(self) -> Iterator[str]:
        """The key of every sample, in manifest order; one that cannot be read goes by its row.

        Headers alone are read, of small remote samples whole segments. Of remote data many are asked for side by side.
        """
        with ThreadPoolExecutor(KEYS_AT_ONCE, thread_name_prefix="key") as pool:
            ask = pool.map if self.remote else map
            for start in range(0, len(self), 4096):
                shards, numbers = self.locate(np.arange(start, min(start + 4096, len(self))))
                self._store.copy_sidecars(np.unique(shards).tolist())
                yield from ask(self._read_key, shards.tolist(), numbers.tolist())

    def _read_key(self, shard: int, number: int) -> str:
        try:
            return self._store.read_key(shard, number)
        except DamagedSampleError as error:
            return error.name

    def location(self, shard: int) -> str:
        """Path or URL by which a shard is reached; secrets may stand in it."""
        return self._store.location(shard)

    def sidecar(self, shard: int) -> Sidecar:
        """The whole sidecar of a shard, samples included that indexing left out."""
        return self._store.sidecar(shard)

    @cached_property
    def keys_repeat(self) -> bool:
        """Whether shards number their samples anew, so that samples of different shards have the same key.

        Told by the first samples of the first two shards, and of the first two with one file name: folders that were
        packed apart. Data of which only a few keys repeat are not noticed.
        """
        used = np.flatnonzero(self.manifest.counts).tolist()
        first: dict[str, int] = {}
        names = ((shard, self.manifest.urls[shard].rsplit("/", 1)[-1]) for shard in used)
        twins = next(((first[n], s) for s, n in names if first.setdefault(n, s) != s), ())
        return any(
            not self._first_keys(pair[0]).isdisjoint(self._first_keys(pair[1]))
            for pair in (used[:2], twins)
            if len(pair) == 2
        )

    def _first_keys(self, shard: int) -> set[str]:
        """The keys of a shard's first samples; several, for the first one of another shard may be damaged."""
        keys = set()
        for number in range(min(4, int(self.manifest.counts[shard]))):
            with suppress(DamagedSampleError):
                keys.add(self._store.read_first_key(shard, number))
        return keys

    def row(self, shard: int, number: int) -> int:
        """Row in the whole sidecar of the ``number``-th valid sample of a shard."""
        return self._store.row(shard, number)

    def valid_sidecar(self, shard: int) -> Sidecar:
        """The sidecar's rows of valid samples only, whatever is selected."""
        sidecar = self._store.sidecar(shard)
        return sidecar.take(sidecar.valid != 0)

    @property
    def remote(self) -> bool:
        """Whether any shard has to be fetched."""
        return self._store.remote

    def use_segments(self, samples: int, at_once: int = 1) -> None:
        """Fetch so many consecutive samples at once from remote shards; ``at_once`` such chunks are read in turn."""
        self._store.use_segments(samples, at_once)

    def segments(
        self, indices: Int64Array, epochs: Int64Array, positions: Int64Array, runs: Runs | None = None
    ) -> Needs:
        """The remote segments that samples at ``indices`` lie in, with the first and last position of each epoch's use.

        ``positions``: (n,), ascending, and ``epochs``, (n,), the epoch of each; ``runs``: what is fetched together, by
        default the chunks of each shard.
        """
        shards, numbers = self.locate(indices)
        first, stop = self._find_bounds(shards, numbers, runs)
        if not self._store.fetched.all():
            elsewhere = self._store.fetched[shards]
            columns = (shards, numbers, first, stop, epochs, positions)
            shards, numbers, first, stop, epochs, positions = (column[elsewhere] for column in columns)
        starts, sizes = self._starts[shards] + first, stop - first
        begins = (epochs - epochs[:1]) * self._total + starts
        keys = begins * (int(sizes.max(initial=0)) + 1) + sizes
        _, before = np.unique(keys, return_index=True)
        _, after = np.unique(keys[::-1], return_index=True)
        for at in np.unique(np.concatenate([before, len(positions) - 1 - after])).tolist():
            run = int(first[at]), int(stop[at])
            yield (
                self._store.cache(),
                self._store.segment(int(shards[at]), int(numbers[at]), run),
                int(positions[at]),
            )

    def find_together(
        self, shards: Int64Array, numbers: Int64Array, runs: Runs | None
    ) -> list[tuple[int, int] | None]:
        """The samples [first, stop) of its shard that are fetched with each sample; None where nothing is fetched."""
        if not self.remote:
            return [None] * len(shards)
        first, stop = self._find_bounds(shards, numbers, runs)
        return list(zip(first.tolist(), stop.tolist(), strict=True))

    def _find_bounds(
        self, shards: Int64Array, numbers: Int64Array, runs: Runs | None
    ) -> tuple[Int64Array, Int64Array]:
        if runs is not None and self._indices is None:
            return numbers - (runs.index - runs.first), numbers + (runs.stop - runs.index)
        first = numbers - numbers % self._store.segment_samples
        return first, np.minimum(first + self._store.segment_samples, self.manifest.counts[shards])

    def read(self, shard: int, number: int, run: Run = None) -> Sample:
        """Decode the ``number``-th valid sample of a shard; raises DamagedSampleError.

        ``run``: what is fetched with it where it is remote.
        """
        counts = counters.counts
        counts.samples += 1
        if counts.samples % counters.TIMED == 0:
            return self._read_timed(shard, number, run)
        return self._decode(shard, *self._store.read(shard, number, run))

    def _read_timed(self, shard: int, number: int, run: Run) -> Sample:
        """As `read`; its seconds count for those of the samples since the last one, too."""
        began = time.perf_counter()
        key, members = self._store.read(shard, number, run)
        read = time.perf_counter()
        try:
            return self._decode(shard, key, members)
        finally:
            counters.counts.reading += counters.TIMED * (read - began)
            counters.counts.decoding += counters.TIMED * (time.perf_counter() - read)

    def _decode(self, shard: int, key: str, members: Mapping[str, memoryview]) -> Sample:
        try:
            return decode_sample(key, members, self.options)
        except DecodeError as error:
            raise DamagedSampleError(self.manifest.urls[shard], key, str(error)) from None
