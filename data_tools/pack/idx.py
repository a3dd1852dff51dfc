"""IDX files, the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist), plain or gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from data_tools.errors import UserError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_BYTES = 4 << 30


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, in native byte order; raises UserError when it is damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
                raise ValueError(f"starts with {magic!r}, not an IDX header")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(magic[3]))
            dtype = np.dtype(_DTYPES[magic[2]])
            wanted = math.prod(shape) * dtype.itemsize
            if wanted > MAX_BYTES:
                raise ValueError(f"shape {shape} is beyond the limit of {MAX_BYTES >> 30} GiB")
            data = file.read(wanted + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a readable IDX file ({error}); fetch it again") from None
    if len(data) != wanted:
        raise UserError(f"{path}: {len(data)} bytes of data do not fit the shape {shape}; fetch it again")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
