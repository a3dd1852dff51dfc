"""JPEG by simplejpeg, which is fast, and takes nothing that libjpeg has a warning for."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np

from data_tools.decode.options import DecodeError, DecodeOptions, check_pixels
from data_tools.decode.orientation import orientation_of, turn

EOI = b"\xff\xd9"
"""The mark at the end of a JPEG."""
APP1, SOS, FILL = 0xE1, 0xDA, 0xFF
"""Markers: of a segment with EXIF or XMP, and of the picture's data; what may stand before any of them."""


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decode_jpeg(payload: memoryview, options: DecodeOptions) -> np.ndarray | None:
    """uint8 (H, W) or (H, W, 3); None where simplejpeg is missing, or wants nothing of this file."""
    fast = _simplejpeg()
    if fast is None:
        return None
    try:
        height, width, colorspace, _ = fast.decode_jpeg_header(payload)
        check_pixels(width, height, options)
        if colorspace not in ("Gray", "YCbCr", "RGB"):
            return None
        # Shrunk by 8, 4 or 2 only: libjpeg-turbo's other scales (n/8) are not vectorised and slower than none at all.
        factor = next(
            (f for f in (8, 4, 2) if options.min_side and min(height, width) >= f * options.min_side), 1
        )
        scaled = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
        array: np.ndarray = fast.decode_jpeg(
            payload, colorspace="GRAY" if colorspace == "Gray" else "RGB", **scaled
        )
    except DecodeError:
        raise
    except ValueError:  # every warning of libjpeg's, a stray byte between two segments too
        return None
    return turned(array, payload) if has_app1(payload) else array


def has_app1(payload: memoryview) -> bool:
    """Whether a JPEG has a segment of the kind that EXIF and XMP stand in."""
    offset = 2
    while offset + 4 <= len(payload) and payload[offset] == 0xFF:
        marker, length = payload[offset + 1], payload[offset + 2] << 8 | payload[offset + 3]
        if marker == FILL:
            offset += 1
            continue
        if marker in (APP1, SOS):
            return marker == APP1
        offset += 2 + length
    return False


def turned(array: np.ndarray, payload: memoryview) -> np.ndarray:
    """The pixels of a JPEG, turned as its EXIF orientation says."""
    from PIL import Image

    with Image.open(io.BytesIO(payload), formats=("JPEG",)) as header:
        orientation = orientation_of(header)
    if orientation == 1:
        return array
    planes = array if array.shape[-1] == 3 else array.reshape(array.shape[:2])
    return np.asarray(turn(Image.fromarray(planes), orientation))
