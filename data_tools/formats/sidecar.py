"""The sidecar, one flat binary a shard: where every sample lies, whether it is valid, its checksum and length."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError, lacks_memory
from data_tools.storage.checksum import crc32

_MAGIC = b"MSQIDX1\n"

BLOCK = 4096
"""Bytes of a sample under one CRC, where a part of it may be read alone; counted from its first byte."""
LARGE = 4 * BLOCK
"""Bytes above which a sample has CRCs of its blocks, in a sidecar that has them at all."""

_DTYPES = {"offset": "<u8", "size": "<u4", "valid": "|u1", "crc": "<u4", "length": "<u4"}


@dataclass(frozen=True)
class Sidecar:
    """Columns of one shard, all of shape (n,); ``crc`` and ``length`` may be unknown.

    ``blocks``: the CRCs of all blocks of the large samples, one sample after the other, or None; see `block_crcs`.
    """

    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    valid: NDArray[np.uint8]
    crc: NDArray[np.uint32] | None = None
    length: NDArray[np.uint32] | None = None
    blocks: NDArray[np.uint32] | None = None  # (blocks of large samples,)

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def bad(self) -> int:
        return int(len(self) - np.count_nonzero(self.valid))

    @cached_property
    def _block_start(self) -> NDArray[np.int64]:
        """Where each row's CRCs begin in ``blocks``, and the end of the last one's: (n + 1,)."""
        return np.concatenate([[0], np.cumsum(count_blocks(self.size))])

    def block_crcs(self, row: int) -> NDArray[np.uint32] | None:
        """The CRC of each block of a sample, the last of which may be short; None where they are not known."""
        if self.blocks is None or self.size[row] <= LARGE:
            return None
        return self.blocks[self._block_start[row] : self._block_start[row + 1]]

    def take(self, chosen: NDArray[np.bool_]) -> Sidecar:
        """The rows where ``chosen`` (n,) is true."""
        taken: dict[str, Any] = {}
        if self.blocks is not None:
            taken["blocks"] = self.blocks[np.repeat(chosen, count_blocks(self.size))]
        for name in _DTYPES:
            column = getattr(self, name)
            taken[name] = None if column is None else column[chosen]
        return Sidecar(**taken)

    def to_bytes(self) -> bytes:
        columns = {name: getattr(self, name) for name in _DTYPES if getattr(self, name) is not None}
        body = b"".join(np.ascontiguousarray(v, dtype=_DTYPES[name]).tobytes() for name, v in columns.items())
        about: dict[str, Any] = {"samples": len(self), "columns": list(columns)}
        if self.blocks is not None:
            body += np.ascontiguousarray(self.blocks, dtype="<u4").tobytes()
            about["blocks"] = len(self.blocks)
        header = json.dumps({**about, "crc": crc32(body)}).encode()
        header += b" " * (-(len(_MAGIC) + 4 + len(header)) % 8)  # the u64 column starts on 8 bytes
        return _MAGIC + len(header).to_bytes(4, "little") + header + body


def count_blocks(size: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Blocks that have a CRC of their own, of samples of ``size`` bytes (n,): none for small ones."""
    return np.where(size > LARGE, -(-size.astype(np.int64) // BLOCK), 0)


def read_sidecar(path: Path, check: bool = False) -> Sidecar:
    """Memory-mapped columns; ``check`` compares the CRC of the whole. Raises UserError when it is not whole."""
    remedy = f"rebuild it with `python -m data_tools index {path.parent}`"
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("not a sidecar")
        start = len(_MAGIC) + 4
        body = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        header = json.loads(data[start:body])
        n, names, blocks = int(header["samples"]), header["columns"], int(header.get("blocks", 0))
        if len(data) != body + n * sum(np.dtype(_DTYPES[name]).itemsize for name in names) + 4 * blocks:
            raise ValueError(f"{len(data)} bytes do not hold {n} samples")
        if check and crc32(memoryview(data)[body:]) != header["crc"]:
            raise ValueError("checksum does not match")
    except FileNotFoundError:
        raise UserError(f"{path}: the sidecar is missing; {remedy}") from None
    except (ValueError, KeyError, OSError) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"{path}: damaged sidecar ({error}); {remedy}") from None
    columns = {}
    for name in names:
        columns[name] = np.frombuffer(data, dtype=_DTYPES[name], count=n, offset=body)
        body += columns[name].nbytes
    if blocks:
        columns["blocks"] = np.frombuffer(data, dtype="<u4", count=blocks, offset=body)
    return Sidecar(**columns)
