"""Writes ordinary WebDataset tars together with their sidecars, so that nothing has to be scanned afterwards."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import Manifest, Shard, make_manifest, write_manifest
from data_tools.formats.sidecar import BLOCK, LARGE, Sidecar
from data_tools.storage.atomic import explain_full_disk, write_atomically
from data_tools.storage.checksum import crc32

SHARD_BYTES = 256 << 20  # large enough for sequential reading, small enough to copy and to rewrite


def member_bytes(name: str, payload: bytes) -> bytes:
    """One tar member: header (pax only where the name is long), payload and padding; no time, no owner."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return header + payload + b"\0" * (tar.padded(len(payload)) - len(payload))


class ShardWriter:
    """Writes shards ``<prefix>000000.tar`` … into a folder; each appears under its name only when it is whole.

    Use as a context manager; ``close`` returns the manifest's entries. ``with_length`` says that each sample brings
    its length (tokens, frames) for the sidecar, where the blocks of large ones then have CRCs too: of a long document,
    a row of tokens reads a piece.
    """

    def __init__(
        self, folder: Path, shard_bytes: int = SHARD_BYTES, max_samples: int = 1 << 30,
        with_length: bool = False, prefix: str = "", first: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.shard_bytes, self.max_samples = folder, shard_bytes, max_samples
        self.with_length, self.prefix = with_length, prefix
        self.shards: list[Shard] = []
        self.extensions: Counter[str] = Counter()
        self._number = first
        self._file: Any = None
        self._rows: list[tuple[int, int, int, int]] = []  # offset, size, crc, length
        self._blocks: list[int] = []  # CRCs of the blocks of large samples
        self._offset = 0
        self._last_key = ""

    def write(self, key: str, members: Mapping[str, bytes], length: int | None = None) -> None:
        """Append one sample: ``members`` maps an extension to its bytes.

        Raises UserError for a key that plain webdataset would read back as another: one with a dot in its last part,
        a hidden or an empty one, or the one before once more; ``tar.escape_key`` makes any key fit.
        """
        self._check_key(key, members)
        if self.with_length and length is None:
            raise ValueError(f"sample {key!r} has no length")
        data = b"".join(member_bytes(f"{key}.{extension}", payload) for extension, payload in members.items())
        if len(data) > tar.MAX_SAMPLE_BYTES:
            raise UserError(f"{key}: a sample of {len(data)} bytes; the limit is {tar.MAX_SAMPLE_BYTES}")
        full = self._offset + len(data) > self.shard_bytes or len(self._rows) >= self.max_samples
        if self._rows and full:
            self._finish_shard()
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        try:
            self._file.write(data)
        except OSError as error:
            raise explain_full_disk(error, self.folder / self._name, self._offset + len(data)) from None
        self._rows.append((self._offset, len(data), crc32(data), length or 0))
        if self.with_length and len(data) > LARGE:
            view = memoryview(data)
            self._blocks += [crc32(view[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        self._offset += len(data)
        self.extensions.update(members.keys())

    def _check_key(self, key: str, members: Mapping[str, bytes]) -> None:
        for extension in members:
            if tar.split_name(f"{key}.{extension}") != (key, extension.lower()):
                raise UserError(
                    f"key {key!r}: as {key}.{extension} it would be read back as another sample's; the last part of a"
                    f" key needs characters, none of them a dot, such as {tar.escape_key(key)!r}"
                )
        if self._rows and key == self._last_key:
            raise UserError(f"key {key!r}: two samples in a row would be read back as one; number them")
        self._last_key = key

    @property
    def _name(self) -> str:
        return f"{self.prefix}{self._number:06d}.tar"

    @property
    def _partial(self) -> Path:
        return self.folder / f".{self._name}.partial"

    def _finish_shard(self) -> None:
        try:
            self._file.write(b"\0" * (2 * tar.BLOCK))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_full_disk(error, self.folder / self._name, self._offset) from None
        self._file.close()
        self._file = None
        rows = np.array(self._rows, dtype=np.int64)
        sidecar = Sidecar(
            offset=rows[:, 0].astype(np.uint64),
            size=rows[:, 1].astype(np.uint32),
            valid=np.ones(len(rows), dtype=np.uint8),
            crc=rows[:, 2].astype(np.uint32),
            length=rows[:, 3].astype(np.uint32) if self.with_length else None,
            blocks=np.array(self._blocks, dtype=np.uint32) if self._blocks else None,
        )
        data = sidecar.to_bytes()
        write_atomically(self.folder / f"{self._name}.sidecar", data)
        self._partial.replace(self.folder / self._name)
        size = self._offset + 2 * tar.BLOCK
        self.shards.append(Shard(self._name, len(rows), 0, size, crc32(data)))
        self._number += 1
        self._rows, self._blocks, self._offset = [], [], 0

    def close(self) -> list[Shard]:
        if self._rows:
            self._finish_shard()
        return self.shards

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            with suppress(OSError):  # a full disk does not take what is buffered
                self._file.close()
            self._partial.unlink(missing_ok=True)


def finish_dataset(writer: ShardWriter, about: dict[str, Any] | None = None) -> Manifest:
    """Close the writer and write the manifest beside its shards."""
    shards = writer.close()
    manifest = make_manifest(
        shards, tuple(sorted(writer.extensions)), writer.with_length, about, has_crc=True
    )
    write_manifest(manifest, writer.folder)
    return manifest
