"""Pieces of long documents: some tokens out of the middle, without reading, checking and parsing the whole.

Our writer's sidecars have a CRC for each block of a large sample. Of such a document its first block is read, which
says where the tokens lie, and the blocks of the piece. Where most samples of a remote shard are large, their blocks
are fetched in parts, which are segments of their own.
Of any other document the whole is read, and the last ones are kept, since rows that stand together share them.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.reader import Run
from data_tools.dataset.stretches import Stretch, find_held, guess_width
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.sidecar import BLOCK, LARGE
from data_tools.order.packing import Rows
from data_tools.order.sharing import Runs
from data_tools.storage.checksum import crc32
from data_tools.storage.handles import Recent, renew_when_forked
from data_tools.storage.prefetch import Needs
from data_tools.storage.segments import Segment, SegmentCache

Int64Array = NDArray[np.int64]
TOKENS = "tokens.npy"
PART_BLOCKS = 16  # of a remote part: 64 KiB, a request that waits about as long as it takes
PLACES = 4096  # documents of which it is remembered where their tokens lie
KEPT_BYTES = 64 << 20  # of whole documents, in each process


@dataclass(frozen=True)
class TokenPlace:
    """Where a document's tokens lie: from byte ``start`` of the sample on, ``count`` of ``dtype``."""

    key: str
    start: int
    dtype: np.dtype[Any]
    count: int

    def bytes_of(self, first: int, size: int) -> tuple[int, int]:
        """The bytes [begin, end) of the sample that hold ``size`` tokens from ``first`` on."""
        begin = self.start + first * self.dtype.itemsize
        return begin, begin + size * self.dtype.itemsize


class TokenReader:
    """Reads pieces of the documents of a data set, with the key of each."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self._store = dataset, dataset.store
        self._places = Recent(self._find_tokens, PLACES)
        self._start()
        renew_when_forked(self)

    def begin_in_child(self) -> None:
        """Whoever held the lock is not here, nor what it was at."""
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._whole: OrderedDict[tuple[int, int], tuple[str, NDArray[np.integer]]] = OrderedDict()
        self._held = 0  # bytes in it

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_lock", "_whole", "_held")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
        renew_when_forked(self)

    def read(
        self, shard: int, number: int, first: int, size: int, run: Run = None
    ) -> tuple[str, NDArray[np.integer]]:
        """(key, tokens (size,)) from token ``first`` on of the ``number``-th valid sample of a shard.

        ``run``: the samples that are fetched with it, where it is remote and not fetched in parts.
        Raises DamagedSampleError where these cannot be read, and UserError where a sample has no tokens.
        """
        self._store.refuse_marked(shard, number)
        place = self._places((shard, number, run)) if self._in_blocks(shard, number) else None
        if place is None:
            key, tokens = self._read_whole(shard, number, run)
            count = len(tokens)
        else:
            key, count = place.key, place.count
        if count < first + size:
            reason = f"{count} tokens, the sidecar promised {first + size}"
            raise DamagedSampleError(self.dataset.manifest.urls[shard], key, reason)
        if place is None:
            return key, tokens[first : first + size]
        begin, end = place.bytes_of(first, size)
        block = begin // BLOCK
        raw = self._read_blocks(shard, number, block, -(-end // BLOCK), key, run)
        return key, np.frombuffer(raw, place.dtype, size, begin - block * BLOCK)

    def segments(
        self, rows: Rows, epochs: Int64Array, positions: Int64Array, runs: Runs | None = None
    ) -> Needs:
        """What is read for the pieces of ``rows``, with the epoch and the position, (pieces,), that need each.

        ``runs``: which samples are fetched with each piece's, as `read` is told.
        """
        shards, numbers = self.dataset.locate(rows.document)
        parted = self._in_parts(shards)
        for i in np.flatnonzero(parted).tolist():
            parted[i] = self._in_blocks(int(shards[i]), int(numbers[i]))
        whole = ~parted
        chosen = None if runs is None else runs.take(whole)
        needs = list(self.dataset.segments(rows.document[whole], epochs[whole], positions[whole], chosen))
        pieces = (shards, numbers, rows.start, rows.size, positions)
        for shard, number, begin, count, position in zip(*(p[parted].tolist() for p in pieces), strict=True):
            parts = self._expected_parts(shard, number, begin, count)
            needs += [(self._store.cache(), self._part(shard, number, part), position) for part in parts]
        return iter(sorted(needs, key=lambda need: need[2]))

    def _in_parts(self, shards: Int64Array) -> NDArray[np.bool_]:
        """Whether the long samples of each remote shard (n,) are fetched in parts: where most are long."""
        manifest = self.dataset.manifest
        long: NDArray[np.bool_] = manifest.bytes[shards] > LARGE * manifest.samples[shards]
        return long & self._store.fetched[shards]

    def _in_blocks(self, shard: int, number: int) -> bool:
        """Whether a sample has CRCs of its blocks."""
        sidecar = self._store.sidecar(shard)
        return sidecar.blocks is not None and bool(sidecar.size[self._store.row(shard, number)] > LARGE)

    def _find_tokens(self, sample: tuple[int, int, Run]) -> TokenPlace | None:
        """Where the tokens of (shard, number) lie, as its first block says; None where they are not its beginning."""
        shard, number, run = sample
        block = self._read_blocks(shard, number, 0, 1, f"#{self._store.row(shard, number)}", run)
        try:
            member = tar.first_member(block, self._size(shard, number))
            header = io.BytesIO(block[member.data :])
            version = npy.read_magic(header)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(header)
        except ValueError:  # of a TarError, too: the whole is read then, and says what is wrong
            return None
        key, extension = tar.split_name(member.name) or ("", "")
        plain = extension == TOKENS and len(shape) == 1 and dtype.kind in "iu"
        if not plain or header.tell() + shape[0] * dtype.itemsize != member.size:
            return None
        return TokenPlace(key, member.data + header.tell(), dtype, shape[0])

    def _size(self, shard: int, number: int) -> int:
        return int(self._store.sidecar(shard).size[self._store.row(shard, number)])

    def _read_blocks(self, shard: int, number: int, first: int, last: int, name: str, run: Run) -> bytes:
        """Blocks ``first`` ≤ b < ``last`` of a sample, compared with their CRCs; raises DamagedSampleError."""
        try:
            return self._compared(shard, number, first, last, name, run)
        except DamagedSampleError:
            if not self._store.fetched[shard]:
                raise
        # perhaps damaged on its way, or on this node's disk: fetched once more
        for segment in self._segments_of(shard, number, first, last, run):
            self._store.cache().drop(segment)
        return self._compared(shard, number, first, last, name, run)

    def _compared(self, shard: int, number: int, first: int, last: int, name: str, run: Run) -> bytes:
        store, url = self._store, self.dataset.manifest.urls[shard]
        sidecar, row = store.sidecar(shard), store.row(shard, number)
        begin, end = first * BLOCK, min(last * BLOCK, int(sidecar.size[row]))
        offset = int(sidecar.offset[row])
        try:
            if store.fetched[shard]:
                segments = self._segments_of(shard, number, first, last, run)
                held = [_read_overlap(store.cache(), s, offset + begin, offset + end) for s in segments]
                raw = b"".join(held)
            else:
                raw = store.read_local(shard, offset + begin, end - begin)
        except OSError as error:
            raise DamagedSampleError(url, name, f"cannot be read ({error.strerror or error})") from None
        if len(raw) != end - begin:
            raise DamagedSampleError(url, name, f"cut: {len(raw)} of {end - begin} bytes")
        crcs = sidecar.block_crcs(row)
        if crcs is not None and store.fetching.checksums:
            view = memoryview(raw)
            for block in range(first, last):
                at = (block - first) * BLOCK
                if crc32(view[at : at + BLOCK]) != crcs[block]:
                    raise DamagedSampleError(url, name, f"checksum of block {block} does not match")
        return raw

    def _segments_of(self, shard: int, number: int, first: int, last: int, run: Run) -> list[Segment]:
        """The segments that hold the blocks ``first`` ≤ b < ``last`` of a remote sample."""
        if isinstance(run, Stretch):
            begin, end = self._bytes_in(shard, number, run)
            if begin <= first * BLOCK and min(last * BLOCK, self._size(shard, number)) <= end:
                return [self._store.segment(shard, number, run)]
        elif not self._in_parts(np.array([shard]))[0]:
            return [self._store.segment(shard, number, run)]
        return [self._part(shard, number, part) for part in _parts(first, last)]

    def _bytes_in(self, shard: int, number: int, stretch: Stretch) -> tuple[int, int]:
        """The bytes [first, stop) of a remote sample that a stretch holds."""
        begin = stretch.begin if number == stretch.first else 0
        end = stretch.end if number == stretch.last else -1
        return find_held(self._store.sidecar(shard), self._store.row(shard, number), begin, end)

    def stretch_segments(self, shard: int, stretch: Stretch) -> list[Segment]:
        """What is fetched for a stretch: itself, and the first block of its first document, if that lies before it."""
        segments = [self._store.segment(shard, stretch.first, stretch)]
        if self._bytes_in(shard, stretch.first, stretch)[0]:
            segments.append(replace(self._part(shard, stretch.first, 0), once=stretch.once))
        return segments

    def _part(self, shard: int, number: int, part: int) -> Segment:
        """A part of a remote sample as a segment: its first block, then every `PART_BLOCKS` blocks."""
        sidecar, row = self._store.sidecar(shard), self._store.row(shard, number)
        begin = 0 if part == 0 else (1 + (part - 1) * PART_BLOCKS) * BLOCK
        end = min(int(sidecar.size[row]), (1 + part * PART_BLOCKS) * BLOCK)
        place = int(sidecar.offset[row]) + begin, end - begin
        return Segment(shard, number, number + 1, end - begin, lambda _: place, part=part)

    def _expected_parts(self, shard: int, number: int, first: int, size: int) -> list[int]:
        """The parts that a piece will be in: its place is not known before the first block is here.

        Tokens come first in a sample of ours, behind headers that fit a block, in the widest integers that fit.
        """
        sidecar, row = self._store.sidecar(shard), self._store.row(shard, number)
        count, held = int(sidecar.length[row]) if sidecar.length is not None else 0, int(sidecar.size[row])
        width = guess_width(count, held)
        begin, end = first * width, min(held, (first + size) * width + BLOCK)
        return sorted({0, *_parts(begin // BLOCK, -(-end // BLOCK))})

    def _read_whole(self, shard: int, number: int, run: Run = None) -> tuple[str, NDArray[np.integer]]:
        if self._whole:
            with self._lock:
                if (kept := self._whole.get((shard, number))) is not None:
                    self._whole.move_to_end((shard, number))
                    return kept
        sample = self.dataset.read(shard, number, run)
        if "tokens" not in sample:
            refuse_without_tokens(self.dataset, sample)
            reason = "incomplete: has no tokens.npy, as other samples have"
            raise DamagedSampleError(self.dataset.manifest.urls[shard], sample["__key__"], reason)
        found = sample["__key__"], sample["tokens"]
        if found[1].nbytes > LARGE:
            self._keep((shard, number), found)
        return found

    def _keep(self, sample: tuple[int, int], found: tuple[str, NDArray[np.integer]]) -> None:
        with self._lock:
            if sample not in self._whole:  # another thread may have read it meanwhile
                self._held += found[1].nbytes
                self._whole[sample] = found
            while self._held > KEPT_BYTES and len(self._whole) > 1:
                self._held -= self._whole.popitem(last=False)[1][1].nbytes


def refuse_without_tokens(dataset: Dataset, sample: Sample) -> None:
    """Raise UserError for a sample without tokens where no other sample of the data set has them."""
    if TOKENS not in dataset.manifest.extensions:
        raise UserError(f"{sample['__key__']}: has no tokens.npy; run `python -m data_tools tokenize` first")


def _read_overlap(cache: SegmentCache, segment: Segment, begin: int, end: int) -> bytes:
    """What a segment holds of the bytes [begin, end) of its shard."""
    begin, end = max(begin, segment.start), min(end, segment.start + segment.size)
    return cache.read(segment, begin, end - begin)


def _parts(first: int, last: int) -> range:
    """The parts that hold the blocks ``first`` ≤ b < ``last``."""
    return range(-(-first // PART_BLOCKS), -(-(last - 1) // PART_BLOCKS) + 1)
