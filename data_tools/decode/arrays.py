""".npy arrays, read by hand so that no pickle can hide in one; tokens."""

from __future__ import annotations

import ast
import math
import struct
from functools import lru_cache
from typing import Literal

import numpy as np

from data_tools.decode.options import DecodeError


def decode_npy(payload: memoryview, *_: object) -> np.ndarray:
    """A .npy array, read by hand so that no pickled object can hide in it; the data are not copied."""
    if bytes(payload[:6]) != b"\x93NUMPY" or len(payload) < 12:
        raise DecodeError("not a .npy file")
    start, width = (10, "<H") if payload[6] == 1 else (12, "<I")
    (length,) = struct.unpack_from(width, payload, 8)
    if length > 65536:
        raise DecodeError(f".npy header of {length} bytes refused")
    dtype, shape, order = _npy_header(bytes(payload[start : start + length]))
    count = math.prod(shape)
    if count * dtype.itemsize != len(payload) - start - length:
        raise DecodeError(f"shape {shape} does not fit {len(payload) - start - length} bytes")
    array = np.frombuffer(payload, dtype, count, start + length)
    return array.reshape(shape, order=order)


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"]]:
    fields = ast.literal_eval(header.decode("latin1"))
    dtype = np.dtype(fields["descr"])
    if dtype.hasobject:
        raise DecodeError(".npy of Python objects (pickle) refused")
    return dtype, tuple(int(side) for side in fields["shape"]), "F" if fields["fortran_order"] else "C"


def decode_tokens(payload: memoryview, *_: object) -> np.ndarray:
    array = decode_npy(payload)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DecodeError(f"tokens must be a 1-D integer array, not {array.ndim}-D {array.dtype}")
    return array
