"""Images of any format on the list → arrays (H, W, C)."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np

from data_tools.decode.options import DecodeError, DecodeOptions


def decode_image(payload: memoryview, _: str, options: DecodeOptions) -> np.ndarray:
    """uint8 or uint16 (H, W, C); told by its first bytes, as the extension is often wrong."""
    return _jpeg(payload, options) if payload[:2] == b"\xff\xd8" else _pillow(payload, options)


_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")


def _pillow(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    """uint8 or uint16 (H, W, C) of any image format on the list."""
    from PIL import Image

    with Image.open(io.BytesIO(payload), formats=_PILLOW_FORMATS) as image:
        check_pixels(image.width, image.height, options)
        if options.min_side and image.format == "JPEG":
            scale = min(image.width, image.height) / options.min_side
            image.draft(None, (int(image.width / scale), int(image.height / scale)))
        if _bit_depth(payload) == 16 and not image.mode.startswith("I"):
            raise DecodeError("16-bit colour PNG would lose its low bits; store such images as .npy")
        mode = image.mode
        if mode in ("P", "PA"):
            mode = "RGBA" if "transparency" in image.info or mode == "PA" else "RGB"
        elif mode == "1":
            mode = "L"
        elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            mode = "RGB"
        array = np.asarray(image if mode == image.mode else image.convert(mode))
    if array.dtype == np.int32:  # Pillow's mode I; the format held 16 bits
        array = array.astype(np.uint16)
    if array.dtype.byteorder == ">":
        array = array.astype(np.uint16)
    return array if array.ndim == 3 else array[:, :, None]  # (H, W, C)


def _bit_depth(payload: memoryview) -> int:
    """Bit depth of a PNG that has colour (2) or alpha (4, 6); 0 for anything else."""
    is_png = payload[:8] == b"\x89PNG\r\n\x1a\n" and len(payload) > 25
    return payload[24] if is_png and payload[25] in (2, 4, 6) else 0


def check_pixels(width: int, height: int, options: DecodeOptions) -> None:
    if width * height > options.max_pixels:
        raise DecodeError(f"{width}×{height} pixels are beyond the limit of {options.max_pixels}")


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _jpeg(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    fast = _simplejpeg()
    if fast is None:
        return _pillow(payload, options)
    height, width, colorspace, _ = fast.decode_jpeg_header(payload)
    check_pixels(width, height, options)
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return _pillow(payload, options)
    # Shrunk by 8, 4 or 2 only: libjpeg-turbo's other scales (n/8) are not vectorised and slower than none at all.
    factor = next(
        (f for f in (8, 4, 2) if options.min_side and min(height, width) >= f * options.min_side), 1
    )
    scaled = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    array = fast.decode_jpeg(payload, colorspace="GRAY" if colorspace == "Gray" else "RGB", **scaled)
    return array if array.ndim == 3 else array[:, :, None]
