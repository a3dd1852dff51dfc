"""A data set: samples by index, in manifest order, from plain WebDataset tars read in place."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools import tar
from data_tools.cache import build_once, cache_folder
from data_tools.decode import (
    PICKLE_EXTENSIONS,
    DecodeError,
    DecodeOptions,
    Sample,
    decode_sample,
    field_names,
)
from data_tools.errors import UserError
from data_tools.index import index_shards
from data_tools.manifest import MANIFEST_NAME, Manifest, Sidecar, read_manifest, read_sidecar

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]


class DamagedSampleError(ValueError):
    """A sample that cannot be read: ``shard`` and ``name`` (its key, or its row where the key is gone)."""

    def __init__(self, shard: str, name: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {name}: {reason}")
        self.shard, self.name, self.reason = shard, name, reason


class _File:
    """A descriptor that is closed when the last thread that reads from it lets go."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


class _Recent:
    """The most recently used values of a function, safe among threads and dropped when pickled."""

    def __init__(self, make: Any, size: int) -> None:
        self._make, self._size = make, size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return _Recent, (self._make, self._size)


class _Store:
    """Shards and sidecars of one manifest; shared by a data set and its subsets."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        # pread, not a memory map of the shard: it frees the GIL while the disk works, and a file cut short gives
        # fewer bytes instead of SIGBUS.
        self._files = _Recent(_File, 256)
        self._sidecars = _Recent(self._read_sidecar, 1024)
        self._valid_rows = _Recent(self._find_valid_rows, 1024)

    def _read_sidecar(self, shard: int) -> Sidecar:
        sidecar = read_sidecar(self.folder / self.manifest.sidecar_name(shard))
        if len(sidecar) != self.manifest.samples[shard] or sidecar.bad != self.manifest.bad[shard]:
            raise UserError(
                f"{self.manifest.urls[shard]}: its sidecar has {len(sidecar)} samples ({sidecar.bad} bad), the manifest"
                f" says {self.manifest.samples[shard]} ({self.manifest.bad[shard]}); run `python -m data_tools index`"
            )
        return sidecar

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
        sidecar, row = self.sidecar(shard), self.row(shard, number)
        url = self.manifest.urls[shard]
        offset, size = int(sidecar.offset[row]), int(sidecar.size[row])
        try:
            raw = os.pread(self._files(str(self.folder / url)).handle, size, offset)
        except OSError as error:
            raise DamagedSampleError(url, f"#{row}", f"cannot be read ({error.strerror})") from None
        if len(raw) != size:
            raise DamagedSampleError(url, f"#{row}", f"cut: {len(raw)} of {size} bytes")
        intact = sidecar.crc is None or zlib.crc32(raw) == sidecar.crc[row]
        try:
            key, members = tar.sample_members(raw)
        except tar.TarError as error:
            raise DamagedSampleError(url, f"#{row}", str(error)) from None
        if not intact:
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
) -> Dataset:
    """Open ``sample:digits``, a folder, a manifest, one tar, a glob, or a list of tars.

    Tars without a manifest are indexed once into the cache. Raises UserError when there is nothing to open.
    """
    folder = _manifest_folder(source)
    manifest = read_manifest(folder / MANIFEST_NAME)
    refused = sorted(e for e in manifest.extensions if e.rsplit(".", 1)[-1] in PICKLE_EXTENSIONS)
    if refused:
        raise UserError(
            f"{source}: members .{', .'.join(refused)} are pickles, which can run code; repack the data without them"
        )
    if not int(manifest.counts.sum()):
        raise UserError(f"{source}: holds no usable samples; run `python -m data_tools verify` to see why")
    return Dataset(_Store(manifest, folder), options)


def open_marked(folder: Path) -> Dataset:
    """A folder with a manifest, even when all of its samples are marked bad: for ``verify``."""
    return Dataset(_Store(read_manifest(folder / MANIFEST_NAME), folder), DecodeOptions())


def _manifest_folder(source: str | Path | Sequence[str | Path]) -> Path:
    if not isinstance(source, str | Path):
        return _indexed_folder([Path(item) for item in source], str(list(source)[:1]))
    text = str(source)
    if text.startswith("pipe:"):
        raise UserError(f"{text}: pipe: URLs run a shell and are refused; download the shards first")
    if text.startswith("sample:"):
        from data_tools.samples import sample_folder

        return sample_folder(text.removeprefix("sample:"))
    path = Path(text).expanduser()
    if path.name == MANIFEST_NAME:
        return path.parent
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return path
        return _indexed_folder(sorted(path.rglob("*.tar")), text)
    return _indexed_folder([path] if path.is_file() else [Path(p) for p in sorted(glob.glob(text))], text)  # noqa: PTH207


def _indexed_folder(tars: list[Path], asked: str) -> Path:
    """Index local tars into the cache, unless that was done for these very files before."""
    if not tars:
        raise UserError(
            f"{asked}: no such data set; give a folder with manifest.json or .tar files, a glob, or sample:NAME"
        )
    digest = hashlib.blake2b(digest_size=16)
    for path in tars:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())

    def build(folder: Path) -> None:
        log.info(
            "%s: no manifest; indexing %d tars (`python -m data_tools index` keeps it)", asked, len(tars)
        )
        _, bad = index_shards(tars, folder)
        for shard, key, fault in bad[:20]:
            log.warning("%s: %s: %s", shard, key or "shard", fault)

    return build_once(cache_folder() / "index" / digest.hexdigest(), build)
