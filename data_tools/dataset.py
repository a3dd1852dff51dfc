"""A data set: samples by index, in manifest order, from plain WebDataset tars read in place."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools import tar
from data_tools.atomic import write_atomically
from data_tools.cache import OpenFile, Recent, build_once, cache_folder
from data_tools.checksum import crc32
from data_tools.decode import (
    PICKLE_EXTENSIONS,
    DecodeError,
    DecodeOptions,
    Sample,
    decode_sample,
    field_names,
)
from data_tools.errors import UserError
from data_tools.fetch import FetchOptions, Needs, Segment, SegmentCache
from data_tools.index import identity, index_shards
from data_tools.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    Sidecar,
    read_manifest,
    read_sidecar,
)
from data_tools.order import CHUNK_BYTES
from data_tools.remote import MissingError, Retry, is_remote, read_all, redacted

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]


class DamagedSampleError(ValueError):
    """A sample that cannot be read: ``shard`` and ``name`` (its key, or its row where the key is gone)."""

    def __init__(self, shard: str, name: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {name}: {reason}")
        self.shard, self.name, self.reason = shard, name, reason


class _Store:
    """Shards and sidecars of one manifest; shared by a data set and its subsets."""

    def __init__(self, manifest: Manifest, folder: Path, base: str, fetching: FetchOptions) -> None:
        """``base``: URL of the manifest's folder when that is remote; sidecars are then copied into ``folder``."""
        self.manifest, self.folder, self.base, self.fetching = manifest, folder, base, fetching
        self.remote = bool(base) or any(is_remote(url) for url in manifest.urls)
        self.segment_samples = max(
            1, int(CHUNK_BYTES * manifest.samples.sum() / max(1, manifest.bytes.sum()))
        )
        self._cache: SegmentCache | None = None
        self._prefix = f"{folder}/"
        # pread, not a memory map of the shard: it frees the GIL while the disk works, and a file cut short gives
        # fewer bytes instead of SIGBUS.
        self._files = Recent(OpenFile, 256)
        self._sidecars = Recent(self._read_sidecar, 1024)
        self._valid_rows = Recent(self._find_valid_rows, 1024)

    def location(self, shard: int) -> str:
        """Path or URL of a shard."""
        url = self.manifest.urls[shard]
        if is_remote(url):
            return url
        if self.base:
            return f"{self.base}/{url}"
        return url if url.startswith("/") else f"{self._prefix}{url}"

    def _read_sidecar(self, shard: int) -> Sidecar:
        name = self.manifest.sidecar_name(shard)
        if self.base:
            self._copy_sidecar(shard, name)
        sidecar = read_sidecar(self.folder / name)
        if len(sidecar) != self.manifest.samples[shard] or sidecar.bad != self.manifest.bad[shard]:
            raise UserError(
                f"{self.manifest.urls[shard]}: its sidecar has {len(sidecar)} samples ({sidecar.bad} bad), the manifest"
                f" says {self.manifest.samples[shard]} ({self.manifest.bad[shard]}); run `python -m data_tools index`"
            )
        return sidecar

    def _copy_sidecar(self, shard: int, name: str) -> None:
        """Fetch a sidecar unless the copy here is the one that the manifest means."""
        path, expected = self.folder / name, int(self.manifest.checksums[shard])
        if path.exists() and crc32(path.read_bytes()) == expected:
            return
        try:
            data = read_all(f"{self.base}/{name}", self.fetching.retry)
        except MissingError as error:
            raise UserError(
                f"{error}: the sidecar is missing; run `python -m data_tools index` there"
            ) from None
        if crc32(data) != expected:
            raise UserError(
                f"{self.base}/{name}: not the sidecar that the manifest means; index the shards again"
            )
        write_atomically(path, data)

    def cache(self) -> SegmentCache:
        """The node's cache of remote segments, as large as they are now."""
        if self._cache is None:
            name = f"{self.manifest.fingerprint}-{self.segment_samples}"
            self._cache = SegmentCache(cache_folder() / "segments" / name, self.location, self.fetching)
        return self._cache

    def use_segments(self, samples: int) -> None:
        """Fetch ``samples`` consecutive samples at a time: the chunk of the order that will be read."""
        if samples > 1 and samples != self.segment_samples:
            self.segment_samples, self._cache = samples, None

    def segment(self, shard: int, number: int) -> Segment:
        """The segment of the ``number``-th valid sample of a shard."""
        which, sidecar = number // self.segment_samples, self.sidecar(shard)
        first = self.row(shard, which * self.segment_samples)
        last = self.row(shard, min((which + 1) * self.segment_samples, int(self.manifest.counts[shard])) - 1)
        start = int(sidecar.offset[first])
        return Segment(shard, which, start, int(sidecar.offset[last]) + int(sidecar.size[last]) - start)

    def _find_valid_rows(self, shard: int) -> Int64Array:
        return np.flatnonzero(self.sidecar(shard).valid)

    def sidecar(self, shard: int) -> Sidecar:
        found: Sidecar = self._sidecars(shard)
        return found

    def row(self, shard: int, number: int) -> int:
        """Row in the sidecar of the ``number``-th valid sample of a shard."""
        return int(self._valid_rows(shard)[number]) if self.manifest.bad[shard] else number

    def read(self, shard: int, number: int) -> tuple[str, dict[str, memoryview]]:
        """(key, members) of the ``number``-th valid sample of a shard; raises DamagedSampleError."""
        if not self.remote:
            return self._parse(shard, number, self._read_local)
        try:
            return self._parse(shard, number, self._read_remote)
        except DamagedSampleError:  # perhaps damaged on its way, or on this node's disk: fetched once more
            self.cache().drop(self.segment(shard, number))
            return self._parse(shard, number, self._read_remote)

    def _read_local(self, shard: int, _: int, offset: int, size: int) -> bytes:
        data: bytes = self._files(self.location(shard)).read(size, offset)
        return data

    def _read_remote(self, shard: int, number: int, offset: int, size: int) -> bytes:
        return self.cache().read(self.segment(shard, number), offset, size)

    def _parse(
        self, shard: int, number: int, read: Callable[[int, int, int, int], bytes]
    ) -> tuple[str, dict[str, memoryview]]:
        sidecar, row, url = self.sidecar(shard), self.row(shard, number), self.manifest.urls[shard]
        size = int(sidecar.size[row])
        try:
            raw = read(shard, number, int(sidecar.offset[row]), size)
        except OSError as error:
            reason = str(error) if isinstance(error, MissingError) else f"cannot be read ({error.strerror})"
            raise DamagedSampleError(url, f"#{row}", reason) from None
        if len(raw) != size:
            raise DamagedSampleError(url, f"#{row}", f"cut: {len(raw)} of {size} bytes")
        compared = sidecar.crc is not None and self.fetching.checksums
        intact = compared and crc32(raw) == sidecar.crc[row]  # type: ignore[index]
        try:
            key, members = tar.sample_members(raw, check=not intact)
        except tar.TarError as error:
            raise DamagedSampleError(url, f"#{row}", str(error)) from None
        if compared and not intact:
            raise DamagedSampleError(url, key, "checksum does not match")
        return key, members


class Dataset:
    """Valid samples of a manifest, or of a selection of it, by index; see ``open_dataset``."""

    def __init__(self, store: _Store, options: DecodeOptions, indices: Int64Array | None = None) -> None:
        self._store, self.options, self._indices = store, options, indices
        ends = np.cumsum(store.manifest.counts)
        self._starts = ends - store.manifest.counts  # first index of each shard, shape (shards,)
        self._total = int(ends[-1]) if len(ends) else 0

    @property
    def manifest(self) -> Manifest:
        return self._store.manifest

    @property
    def folder(self) -> Path | None:
        """The folder of the manifest."""
        return self._store.folder

    def __len__(self) -> int:
        return self._total if self._indices is None else len(self._indices)

    @property
    def fingerprint(self) -> str:
        if self._indices is None:
            return self.manifest.fingerprint
        digest = hashlib.blake2b(bytes.fromhex(self.manifest.fingerprint), digest_size=16)
        digest.update(self._indices.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def fields(self) -> dict[str, str]:
        """Field → extension of what a sample may have, such as ``{"image": "png", "label": "cls"}``."""
        return {name: extension for extension, name in field_names(self.manifest.extensions).items()}

    @property
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
        if not self.manifest.has_length:
            return None
        columns = []
        for shard in range(len(self.manifest.urls)):
            sidecar = self._store.sidecar(shard)
            if sidecar.length is None:
                return None
            columns.append(sidecar.length[sidecar.valid != 0])
        lengths = np.concatenate(columns)
        return lengths if self._indices is None else lengths[self._indices]

    def select(self, indices: Sequence[int] | Int64Array) -> Dataset:
        """The samples at ``indices`` (any order, repeats allowed) as a data set with its own fingerprint."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise IndexError(f"indices must lie in [0, {len(self)}), got {chosen.min()} … {chosen.max()}")
        if self._indices is not None:
            chosen = self._indices[chosen]
        return Dataset(self._store, self.options, chosen)

    def with_options(self, options: DecodeOptions) -> Dataset:
        """The same samples, decoded with other options."""
        return Dataset(self._store, options, self._indices)

    def locate(self, indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(shard, number within the shard's valid samples) of each index, shapes (n,)."""
        if self._indices is not None:
            indices = self._indices[indices]
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        return shards, indices - self._starts[shards]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        shards, numbers = self.locate(np.array([index % len(self)], dtype=np.int64))
        return self.read(int(shards[0]), int(numbers[0]))

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), 4096):
            shards, numbers = self.locate(np.arange(start, min(start + 4096, len(self))))
            for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
                yield self.read(shard, number)

    def keys(self) -> Iterator[str]:
        """The key of every sample, in manifest order; one that cannot be read goes by its row."""
        for start in range(0, len(self), 4096):
            shards, numbers = self.locate(np.arange(start, min(start + 4096, len(self))))
            for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
                try:
                    yield self._store.read(shard, number)[0]
                except DamagedSampleError as error:
                    yield error.name

    def valid_sidecar(self, shard: int) -> Sidecar:
        """The sidecar's rows of valid samples only, whatever is selected."""
        sidecar = self._store.sidecar(shard)
        return sidecar.take(sidecar.valid != 0)

    @property
    def remote(self) -> bool:
        """Whether any shard has to be fetched."""
        return self._store.remote

    def use_segments(self, samples: int) -> None:
        """Fetch so many consecutive samples at once from remote shards."""
        self._store.use_segments(samples)

    def segments(self, indices: Int64Array, positions: Int64Array) -> Needs:
        """The segments that samples at ``indices`` lie in, each with the position (n,) that needs it."""
        shards, numbers = self.locate(indices)
        for shard, number, position in zip(
            shards.tolist(), numbers.tolist(), positions.tolist(), strict=True
        ):
            yield self._store.cache(), self._store.segment(shard, number), position

    def read(self, shard: int, number: int) -> Sample:
        """Decode the ``number``-th valid sample of a shard; raises DamagedSampleError."""
        key, members = self._store.read(shard, number)
        try:
            return decode_sample(key, members, self.options)
        except DecodeError as error:
            raise DamagedSampleError(self.manifest.urls[shard], key, str(error)) from None


def open_dataset(
    source: str | Path | Sequence[str | Path],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 - frozen
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Dataset:
    """Open ``sample:digits``, a folder or its URL, a manifest, one tar, a glob, or a list of tars or their URLs.

    Tars without a manifest are indexed once into the cache. Raises UserError when there is nothing to open.
    """
    folder, base = _manifest_folder(source, fetching.retry)
    manifest = read_manifest(folder / MANIFEST_NAME)
    refused = sorted(e for e in manifest.extensions if e.rsplit(".", 1)[-1] in PICKLE_EXTENSIONS)
    if refused:
        raise UserError(
            f"{source}: members .{', .'.join(refused)} are pickles, which can run code; repack the data without them"
        )
    if not int(manifest.counts.sum()):
        raise UserError(f"{source}: holds no usable samples; run `python -m data_tools verify` to see why")
    return Dataset(_Store(manifest, folder, base, fetching), options)


def open_marked(folder: Path) -> Dataset:
    """A folder with a manifest, even when all of its samples are marked bad: for ``verify``."""
    return Dataset(_Store(read_manifest(folder / MANIFEST_NAME), folder, "", FetchOptions()), DecodeOptions())


def _manifest_folder(source: str | Path | Sequence[str | Path], retry: Retry) -> tuple[Path, str]:
    """(local folder with the manifest, its base URL if it is remote) of whatever was asked for."""
    if not isinstance(source, str | Path):
        return _indexed_folder([str(item) for item in source], str(list(source)[:1])), ""
    text = str(source)
    if text.startswith("pipe:"):
        raise UserError(f"{text}: pipe: URLs run a shell and are refused; download the shards first")
    if text.startswith("sample:"):
        from data_tools.samples import sample_folder

        return sample_folder(text.removeprefix("sample:")), ""
    if is_remote(text):
        return (_indexed_folder([text], text), "") if text.endswith(_TARS) else _remote_folder(text, retry)
    path = Path(text).expanduser()
    if path.name == MANIFEST_NAME:
        return path.parent, ""
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return path, ""
        return _indexed_folder(sorted(str(p) for p in path.rglob("*") if p.name.endswith(_TARS)), text), ""
    return _indexed_folder([text] if path.is_file() else sorted(glob.glob(text)), text), ""  # noqa: PTH207


_TARS = (".tar", ".tar.gz", ".tgz")


def _remote_folder(url: str, retry: Retry) -> tuple[Path, str]:
    """Copy a remote manifest here; it is small, and may have changed since the last time."""
    base = url.removesuffix(MANIFEST_NAME).rstrip("/")
    folder = cache_folder() / "remote" / hashlib.blake2b(base.encode(), digest_size=16).hexdigest()
    try:
        write_atomically(folder / MANIFEST_NAME, read_all(f"{base}/{MANIFEST_NAME}", retry))
    except MissingError as error:
        raise UserError(f"{error}: no manifest there; write one with `python -m data_tools index`") from None
    return folder, base


def _indexed_folder(tars: list[str], asked: str) -> Path:
    """Index tars into the cache, unless that was done for these very files before; gzipped ones are unpacked."""
    if not tars:
        raise UserError(
            f"{asked}: no such data set; give a folder with manifest.json or .tar files, a glob, or sample:NAME"
        )
    digest = hashlib.blake2b(digest_size=16)
    for name in tars:
        digest.update(f"{identity(name)}\0".encode())

    def build(folder: Path) -> None:
        log.info(
            "%s: no manifest; indexing %d tars (`python -m data_tools index` keeps it)",
            redacted(asked),
            len(tars),
        )
        _, bad = index_shards(tars, folder)
        for shard, key, fault in bad[:20]:
            log.warning("%s: %s: %s", shard, key or "shard", fault)

    return build_once(cache_folder() / f"index-v{MANIFEST_VERSION}" / digest.hexdigest(), build)
