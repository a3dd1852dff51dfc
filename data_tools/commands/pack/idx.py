"""IDX files, the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist), plain or gzip."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.commands.pack.engine import Packed, Skipped, Source, stamp
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


IMAGES_PER_JOB = 20_000


def plan(images: Path, labels: Path | None = None) -> Source:
    """Images of shape (N, H, W) or (N, H, W, C) as PNG, with labels of shape (N,) if given."""
    array = read_idx(images)
    if array.ndim not in (3, 4) or array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{images}: shape {array.shape} of {array.dtype} is no list of images")
    if labels is not None and read_idx(labels).shape != array.shape[:1]:
        raise UserError(
            f"{labels}: {read_idx(labels).shape} labels do not fit {len(array)} images of {images}"
        )
    if labels is not None and read_idx(labels).dtype.kind not in "iu":
        raise UserError(
            f"{labels}: holds {read_idx(labels).dtype}, not class numbers; give a file of integers"
        )
    if not len(array):
        raise UserError(f"{images}: holds no images")
    jobs = [
        [str(images), None if labels is None else str(labels), start, min(start + IMAGES_PER_JOB, len(array))]
        for start in range(0, len(array), IMAGES_PER_JOB)
    ]
    return Source(read, jobs, {"source": images.name}, stamp=stamp(p for p in (images, labels) if p))


def read(job: list[Any]) -> Iterator[Packed | Skipped]:
    images, labels, start, stop = job
    pixels = read_idx(Path(images))
    classes = None if labels is None else read_idx(Path(labels))
    for i in range(start, stop):
        buffer = io.BytesIO()
        Image.fromarray(pixels[i]).save(buffer, "PNG")
        members = {"png": buffer.getvalue()}
        if classes is not None:
            members["cls"] = str(int(classes[i])).encode()
        yield Packed(f"{i:08d}", members)
