"""Bytes of a sample, from shards on this machine or elsewhere, compared with what the sidecar says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.identity import ask_versions, find_change, find_former_fingerprints, name_cache
from data_tools.dataset.stretches import Stretch, find_range
from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import Manifest
from data_tools.formats.marks import Marks, parse_marks
from data_tools.formats.sidecar import Sidecar, read_sidecar
from data_tools.order.shuffle import CHUNK_BYTES
from data_tools.storage import counters
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import cache_errors, make_shared_folder, share
from data_tools.storage.checksum import crc32
from data_tools.storage.handles import OpenFile, Recent, allow_open_files
from data_tools.storage.objects import (
    MissingError,
    RefusedError,
    is_remote,
    read_all,
    read_range,
    redacted,
)
from data_tools.storage.segments import FetchOptions, Segment, SegmentCache
from data_tools.storage.urls import join_url

Int64Array = NDArray[np.int64]
Run = tuple[int, int] | Stretch | None
"""What is fetched at once: samples [first, stop) of a shard, or a stretch of tokens; None: the chunk of the shard."""
REFUSED = "give a fresh signature, or credentials (S3: the environment or a profile; http: ~/.netrc)"

SIDECARS_AT_ONCE = 32

HEAD_BYTES = 2048
"""Of a sample, what holds its first headers, pax records included."""
LARGE_SAMPLES = 64 << 10
"""Bytes of a shard's mean sample from which on a request for each head takes less than segments of whole samples."""
HEAD_PART = 1 << 30
"""Its number among the parts of a sample, of which none has so many."""


class Store:
    """Shards and sidecars of one manifest; shared by a data set and its subsets."""

    def __init__(
        self, manifest: Manifest, folder: Path, base: str, fetching: FetchOptions, sources: Sequence[str] = ()
    ) -> None:
        """``base``: URL of the manifest's folder when that is remote; sidecars are then copied into ``folder``.

        ``sources``: by which path or URL each shard is reached, where the manifest's own lacks a signature.
        """
        self.manifest, self.folder, self.base, self.fetching = manifest, folder, base, fetching
        self.sources = sources
        places = sources or manifest.urls
        # (shards,), whether each lies elsewhere: of several data sets that are one, some may lie here. Not a
        # cached_property: where one fills an object's __dict__, CPython 3.11 looks up each of its methods anew.
        self.fetched = np.fromiter((bool(base) or is_remote(place) for place in places), bool, len(places))
        self.remote = bool(self.fetched.any())
        self.segment_samples = max(
            1, int(CHUNK_BYTES * manifest.samples.sum() / max(1, manifest.bytes.sum()))
        )
        self._cache: SegmentCache | None = None
        self._at_once = 256  # chunks that are read in turn
        self._prefix = f"{folder}/"
        # pread, not a memory map of the shard: it frees the GIL while the disk works, and a file cut short gives
        # fewer bytes instead of SIGBUS.
        kept = allow_open_files(
            min(1024, len(manifest.urls))
        )  # a sidecar's memory map keeps its file open, too
        self._files = Recent(self._open, min(256, kept))
        self._sidecars = Recent(self._read_sidecar, kept)
        self._valid_rows = Recent(self._find_valid_rows, kept)
        self._changes = Recent(self._find_change, 1024)
        self.marks = self._read_marks()
        self._has_bad = bool(manifest.bad.any())  # asked once, not of every sample

    def location(self, shard: int) -> str:
        """Path or URL of a shard."""
        if self.sources:
            return self.sources[shard]
        url = self.manifest.urls[shard]
        if is_remote(url):
            return url
        if self.base:
            return join_url(self.base, url)
        return url if url.startswith("/") else f"{self._prefix}{url}"

    def sidecar_path(self, shard: int) -> Path:
        """Where a shard's sidecar lies on this machine; a remote one is fetched."""
        name = self.manifest.sidecar_name(shard)
        if self.base:
            self._copy_sidecar(shard, name)
        return self.folder / name

    def _read_sidecar(self, shard: int) -> Sidecar:
        path = self.sidecar_path(shard)
        sidecar = read_sidecar(path)
        if not self.base and crc32(path.read_bytes()) != self.manifest.checksums[shard]:
            raise UserError(
                f"{path}: not the sidecar that the manifest means; run `python -m data_tools index`"
            )
        if len(sidecar) != self.manifest.samples[shard] or sidecar.bad != self.manifest.bad[shard]:
            raise UserError(
                f"{self.manifest.urls[shard]}: its sidecar has {len(sidecar)} samples ({sidecar.bad} bad), the manifest"
                f" says {self.manifest.samples[shard]} ({self.manifest.bad[shard]}); run `python -m data_tools index`"
            )
        return sidecar

    def copy_sidecars(self, shards: Iterable[int]) -> None:
        """Fetch the sidecars of ``shards`` side by side, where they lie elsewhere: each takes a round trip."""
        if self.base:
            with ThreadPoolExecutor(SIDECARS_AT_ONCE, thread_name_prefix="sidecar") as pool:
                for _ in pool.map(
                    lambda shard: self._copy_sidecar(shard, self.manifest.sidecar_name(shard)), shards
                ):
                    pass

    def _copy_sidecar(self, shard: int, name: str) -> None:
        """Fetch a sidecar unless the copy here is the one that the manifest means."""
        path, expected = self.folder / name, int(self.manifest.checksums[shard])
        if path.exists() and crc32(path.read_bytes()) == expected:
            return
        try:
            data = read_all(join_url(self.base, name), self.fetching.retry)
        except RefusedError as error:
            raise UserError(f"{error}; {REFUSED}") from None
        except MissingError as error:
            raise UserError(
                f"{error}: the sidecar is missing; run `python -m data_tools index` there"
            ) from None
        if crc32(data) != expected:
            raise UserError(
                f"{redacted(self.base)}/{name}: not the sidecar that the manifest means; index the shards again"
            )
        with cache_errors(self.folder):
            make_shared_folder(path.parent)
            write_atomically(path, data)
            share(path)

    def _read_marks(self) -> Marks:
        """What `verify` marked, if anything: the manifest says so."""
        seal = self.manifest.marks
        if seal is None:
            return {}
        place = join_url(self.base, seal.name) if self.base else str(self.folder / seal.name)
        try:
            data = read_all(place, self.fetching.retry) if self.base else Path(place).read_bytes()
        except (MissingError, FileNotFoundError):
            data = b""
        if crc32(data) != seal.checksum:
            raise UserError(
                f"{redacted(place)}: not the marks that the manifest means; run `python -m data_tools verify`"
            )
        return parse_marks(data, redacted(place))

    @property
    def knows_content(self) -> bool:
        """Whether the fingerprint is one of the samples' bytes: every sidecar has their CRC."""
        if self.manifest.has_crc is not None:
            return self.manifest.has_crc
        return self.sidecar(0).crc is not None

    def former_fingerprints(self) -> set[str]:
        """See `find_former_fingerprints`; reads every sidecar."""
        self.copy_sidecars(range(len(self.manifest.urls)))
        sidecars = (self.sidecar(shard) for shard in range(len(self.manifest.urls)))
        return find_former_fingerprints(self.manifest, sidecars, self.sources)

    def cache(self) -> SegmentCache:
        """The node's cache of remote segments, as large as they are now."""
        if self._cache is None:
            places = [self.location(shard) for shard in range(len(self.manifest.urls))]
            # no CRC would notice that another shard of the same layout lies there now
            versions = (
                self.manifest.versions
                if self.knows_content
                else ask_versions(self.manifest, places, self.fetching.retry)
            )
            name = name_cache(self.manifest, places, versions, self.segment_samples)
            self._cache = SegmentCache(
                self.fetching.cache / "segments" / name, self.location, self.fetching, self._at_once
            )
        return self._cache

    def _find_change(self, shard: int) -> str:
        change = find_change(self.manifest, shard, self.location(shard), self.fetching.retry)
        return f"; the shard {change}" if change else ""

    def use_segments(self, samples: int, at_once: int = 1) -> None:
        """Fetch ``samples`` consecutive samples at a time: the chunk of the order that will be read.

        ``at_once`` chunks are read in turn, so the files and sidecars of so many shards are kept open.
        """
        if samples > 1 and samples != self.segment_samples:
            self.segment_samples, self._cache = samples, None
        if at_once > self._at_once:
            self._at_once, self._cache = at_once, None
            self._files.size = allow_open_files(min(at_once, len(self.manifest.urls)))
            # remote: those of the chunks that come next are asked for meanwhile
            self._sidecars.size = self._valid_rows.size = 2 * self._files.size

    def segment(self, shard: int, number: int, run: Run = None) -> Segment:
        """The segment of the ``number``-th valid sample of a shard: the samples [first, stop) of ``run``, or a stretch.

        Without one, segments are the consecutive chunks of a shard.
        """
        if isinstance(run, Stretch):
            place = find_range(
                self.sidecar(shard), self.row(shard, run.first), self.row(shard, run.last), run
            )
            stop = run.last + 1
            return Segment(shard, run.first, stop, place[1], lambda _: place, run.once, tokens=run.name)
        if run is None:
            first = number // self.segment_samples * self.segment_samples
            run = first, min(first + self.segment_samples, int(self.manifest.counts[shard]))
        first, stop = run
        mean = self.manifest.bytes[shard] / max(1, self.manifest.samples[shard])
        once = stop - first == 1 < self.segment_samples
        return Segment(shard, first, stop, int(mean * (stop - first)), self._find_range, once)

    def _find_range(self, segment: Segment) -> tuple[int, int]:
        """(offset, bytes) of a segment in its shard."""
        sidecar = self.sidecar(segment.shard)
        first, last = self.row(segment.shard, segment.first), self.row(segment.shard, segment.stop - 1)
        start = int(sidecar.offset[first])
        return start, int(sidecar.offset[last]) + int(sidecar.size[last]) - start

    def _find_valid_rows(self, shard: int) -> Int64Array:
        return np.flatnonzero(self.sidecar(shard).valid)

    def sidecar(self, shard: int) -> Sidecar:
        """A shard's sidecar, kept among the recent ones; raises UserError where it is not the manifest's."""
        found: Sidecar = self._sidecars(shard)
        return found

    def row(self, shard: int, number: int) -> int:
        """Row in the sidecar of the ``number``-th valid sample of a shard."""
        if self._has_bad and self.manifest.bad[shard]:
            return int(self._valid_rows(shard)[number])
        return number

    def number(self, shard: int, row: int) -> int:
        """Which of a shard's valid samples a row of its sidecar is: the inverse of ``row``."""
        return int(np.searchsorted(self._valid_rows(shard), row)) if self.manifest.bad[shard] else row

    def refuse_marked(self, shard: int, number: int) -> None:
        """Raise DamagedSampleError where the ``number``-th valid sample of a shard is marked by `verify`."""
        if shard in self.marks and (mark := self.marks[shard].get(self.row(shard, number))):
            raise DamagedSampleError(mark.url, mark.sample, f"marked by verify: {mark.reason}", known=True)

    def read(self, shard: int, number: int, run: Run = None) -> tuple[str, dict[str, memoryview]]:
        """(key, members) of the ``number``-th valid sample of a shard; raises DamagedSampleError.

        One that is marked is not read. ``run``: what is fetched with it.
        """
        if self.marks:
            self.refuse_marked(shard, number)
        if not (self.remote and self.fetched[shard]):
            return self._parse(shard, number, self.read_local)
        segment = self.segment(shard, number, run)
        try:
            return self._parse(shard, number, partial(self._read_remote, segment))
        except DamagedSampleError:  # perhaps damaged on its way, or on this node's disk: fetched once more
            self.cache().drop(segment)
            return self._parse(shard, number, partial(self._read_remote, segment))

    def read_key(self, shard: int, number: int) -> str:
        """The key of the ``number``-th valid sample of a shard, by its headers alone unless remote samples are small.

        Raises DamagedSampleError.
        """
        sidecar, row = self.sidecar(shard), self.row(shard, number)
        offset, size = int(sidecar.offset[row]), int(sidecar.size[row])
        if self.fetched[shard]:
            return self._fetch_key(shard, number, offset, size)
        try:
            key = tar.sample_key(lambda start, count: self.read_local(shard, offset + start, count), size)
        except (tar.TarError, OSError) as error:
            raise DamagedSampleError(self.manifest.urls[shard], f"#{row}", str(error)) from None
        return key

    def _fetch_key(self, shard: int, number: int, offset: int, size: int) -> str:
        """The key of a remote sample: out of its segment, which holds many small ones, or out of its head."""
        if self.manifest.bytes[shard] < LARGE_SAMPLES * self.manifest.samples[shard]:
            return self.read(shard, number)[0]
        try:
            raw = read_range(self.location(shard), offset, min(size, HEAD_BYTES), self.fetching.retry)
            counters.counts.fetched_bytes += len(raw)
            return tar.sample_key(lambda start, count: raw[start : start + count], size)
        except RefusedError as error:
            raise UserError(f"{error}; {REFUSED}") from None
        except (
            tar.TarError,
            OSError,
        ):  # longer headers than usual, no ranges, or damage: the whole says which
            return self.read(shard, number)[0]

    def read_first_key(self, shard: int, number: int) -> str:
        """As `read_key`, for a few samples only: of a remote one its head is fetched, and no segment of many samples.

        Raises DamagedSampleError.
        """
        if not self.fetched[shard]:
            return self.read_key(shard, number)
        sidecar, row = self.sidecar(shard), self.row(shard, number)
        offset, size = int(sidecar.offset[row]), int(sidecar.size[row])
        place = offset, min(size, HEAD_BYTES)
        head = Segment(shard, number, number + 1, HEAD_BYTES, lambda _: place, part=HEAD_PART)
        try:
            raw = self.cache().read(head, *place)
            return tar.sample_key(lambda start, count: raw[start : start + count], size)
        except (tar.TarError, OSError):  # longer headers than usual, or damage: the whole says which
            return self.read(shard, number)[0]

    def read_local(self, shard: int, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of a shard on this machine."""
        data: bytes = self._files(shard).read(size, offset)
        return data

    def _open(self, shard: int) -> OpenFile:
        return OpenFile(self.location(shard))

    def _read_remote(self, segment: Segment, _: int, offset: int, size: int) -> bytes:
        return self.cache().read(segment, offset, size)

    def _parse(
        self, shard: int, number: int, read: Callable[[int, int, int], bytes]
    ) -> tuple[str, dict[str, memoryview]]:
        sidecar: Sidecar = self._sidecars(shard)
        row, url = self.row(shard, number), self.manifest.urls[shard]
        size = sidecar.size.item(row)
        try:
            raw = read(shard, sidecar.offset.item(row), size)
        except RefusedError as error:  # the whole store's answer, and nothing that a stand-in mends
            raise UserError(f"{error}; {REFUSED}") from None
        except OSError as error:
            reason = str(error) if isinstance(error, MissingError) else f"cannot be read ({error.strerror})"
            raise DamagedSampleError(url, f"#{row}", reason) from None
        if len(raw) != size:
            raise DamagedSampleError(url, f"#{row}", f"cut: {len(raw)} of {size} bytes")
        counters.counts.read_bytes += size
        compared = sidecar.crc is not None and self.fetching.checksums
        intact = compared and crc32(raw) == sidecar.crc.item(row)  # type: ignore[union-attr]
        try:
            key, members = tar.sample_members(raw, check=not intact)
        except tar.TarError as error:
            raise DamagedSampleError(url, f"#{row}", f"{error}{self._changes(shard)}") from None
        if compared and not intact:
            raise DamagedSampleError(url, key, f"checksum does not match{self._changes(shard)}")
        return key, members
