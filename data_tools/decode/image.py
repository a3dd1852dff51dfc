"""Images of any format on the list → arrays (H, W, C), upright, of the depth that the file has.

Of a file with several pages or frames this is the first. JPEGs are decoded by simplejpeg where it is installed, and by
Pillow wherever simplejpeg does not want a file, so that the same files are sound with it and without.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np

from data_tools.decode.jpeg import EOI, decode_jpeg
from data_tools.decode.options import (
    DecodeError,
    DecodeOptions,
    MissingExtraError,
    check_pixels,
    import_extra,
)
from data_tools.decode.orientation import upright

STRAY = b"\xa5\x5a\x3c" * 11
"""Bytes that a decoder skips where a JPEG is complete, and takes for pixels where it is not."""
PIXI = b"pixi"
"""The box of HEIC and AVIF that holds, 9 bytes from its name, the bits of the first channel."""
HEADER = 1 << 16
"""Bytes at the beginning of a file that such a box is looked for in."""
BITS_PER_SAMPLE, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1
"""Tags of TIFF, and a value of the second."""
TIFF_MARKS = (b"II*\0", b"MM\0*")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000")
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Layouts in which Pillow unpacks what libtiff has brought into this machine's byte order already."""
PLAIN = {
    "1": "L",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "La": "LA",
}
"""Modes that become another one."""


def decode_image(payload: memoryview, _: str, options: DecodeOptions) -> np.ndarray:
    """uint8 or uint16 (H, W, C), from TIFF also int32, uint32 or float32; told by its first bytes, not its extension.

    Turned as its EXIF orientation says. C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).

    Raises:
        DecodeError: damaged, cut short, beyond a limit, or of a depth that would be lost.
        MissingExtraError: HEIC, without the extra that reads it.
    """
    is_jpeg = payload[:2] == b"\xff\xd8"
    array = decode_jpeg(payload, options) if is_jpeg else None
    if array is None:
        array = decode_unended(payload, options) if is_jpeg else decode_with_pillow(payload, options)
    return array if array.ndim == 3 else array[:, :, None]  # (H, W, C)


def decode_unended(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    """A JPEG by Pillow, which waits for the end mark: where that alone is missing, as every other reader does without.

    Whether pixels are missing too is seen by what follows changing the picture.
    """
    try:
        return decode_with_pillow(payload, options)
    except OSError:
        if EOI in payload[-2:].tobytes():
            raise
    ended, strayed = (
        decode_with_pillow(memoryview(payload.tobytes() + more + EOI), options) for more in (b"", STRAY)
    )
    if not np.array_equal(ended, strayed):
        raise DecodeError("cut short: its data end before the picture does")
    return ended


def decode_with_pillow(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    """(H, W) or (H, W, C) of any image format on the list."""
    with open_image(payload) as image:
        check_pixels(image.width, image.height, options)
        if options.min_side and image.format == "JPEG":
            scale = min(image.width, image.height) / options.min_side
            image.draft(None, (int(image.width / scale), int(image.height / scale)))
        if is_deep_colour(image, payload):
            return decode_deep(payload, image)
        if image.tile and image.tile[0].codec_name == "libtiff":
            set_layout(image, NATIVE.get(layout_of(image), layout_of(image)))
        image.load()
        return to_array(upright(image), image)


def to_array(upright: Any, image: Any) -> np.ndarray:
    """(H, W) or (H, W, C) of a loaded image of Pillow's and of the same one turned upright."""
    mode = PLAIN.get(image.mode, image.mode)
    if mode in ("P", "PA"):
        mode = "RGBA" if "transparency" in image.info or mode == "PA" else "RGB"
    elif mode in ("L", "RGB") and "transparency" in image.info:
        mode += "A"  # one value stands for what is transparent
    array = np.asarray(upright if mode == image.mode else upright.convert(mode))
    if array.dtype == np.int32:  # Pillow's mode I, for whatever is deeper than 8 bits
        if image.format != "TIFF":
            array = array.astype(np.uint16)
        elif image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == UNSIGNED:
            array = array.view(np.uint32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def open_image(payload: memoryview) -> Any:
    """The payload as an image of Pillow's, of a format on the list; nothing is decoded yet."""
    from PIL import Image, UnidentifiedImageError, features

    formats: tuple[str, ...] = FORMATS
    if payload[4:8] == b"ftyp":
        if b"avi" in payload[8:64].tobytes():
            if not features.check("avif"):
                raise MissingExtraError("AVIF: this Pillow was built without it; `pip install -U pillow`")
            formats = ("AVIF",)
        else:
            import_extra("pillow_heif", "heic").register_heif_opener()
            formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(payload), formats=formats)
    except UnidentifiedImageError:
        kind = "a kind of TIFF" if payload[:4] in TIFF_MARKS else "no picture, or of a format"
        raise DecodeError(
            f"{kind} that is not read; PNG, JPEG and TIFF of up to 16 bits a channel are"
        ) from None


def count_pages(payload: bytes) -> int:
    """Pages of a TIFF, frames of an animation; 1 of a JPEG, whatever else a phone has put behind the photograph."""
    if payload[:2] == b"\xff\xd8":
        return 1
    with open_image(memoryview(payload)) as image:
        return 1 if image.format == "HEIF" else int(getattr(image, "n_frames", 1))


def is_cut_to_bytes(payload: bytes) -> bool:
    """Whether a HEIC or AVIF has more than the 8 bits a channel that are read of it."""
    place = payload.find(PIXI, 0, HEADER) if payload[4:8] == b"ftyp" else -1
    return 0 <= place < len(payload) - 9 and payload[place + 9] > 8


def is_deep_colour(image: Any, payload: memoryview) -> bool:
    """Whether an image has more than 8 bits in each of several channels, which Pillow has no mode for."""
    if image.format == "PNG":
        return payload[24] == 16 and payload[25] in (2, 4, 6)  # colour, or alpha
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
        return len(bits) > 1 and max(bits) > 8
    if image.format == "JPEG2000":
        start = payload.tobytes().find(b"\xff\x4f\xff\x51")  # of the code stream, whose header says the depth
        return image.mode in ("RGB", "RGBA", "LA") and payload[start + 42] & 0x7F > 7
    if image.format == "PPM" and image.tile[0].codec_name != "raw":
        return image.mode == "RGB" and image.tile[0].args[1] > 255
    return False


def decode_deep(payload: memoryview, image: Any) -> np.ndarray:
    """uint16 (H, W, 3 or 4) of 16-bit colour: Pillow unpacks 8 of the bits at a time, so it is asked twice."""
    mode, _, width = layout_of(image).partition(";")
    if image.format == "TIFF" and image._planar_configuration != 1:
        width = ""
    if mode not in ("RGB", "RGBA") or width not in ("16B", "16L", "16N"):
        raise DecodeError(
            f"{image.format} of more than 8 bits in each of several channels ({image.mode}) would lose its low bits; "
            "store it as 16-bit RGB or RGBA in PNG or TIFF"
        )
    big = width == "16B" or (width == "16N" and sys.byteorder == "big")
    high, low = (
        unpack_as(payload, f"{mode};{which}") for which in (("16B", "16L") if big else ("16L", "16B"))
    )
    return high.astype(np.uint16) << 8 | low


def layout_of(image: Any) -> str:
    """Pillow's name of how a value lies in an image's file."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def set_layout(image: Any, layout: str) -> None:
    """Have an image's values unpacked from another layout."""
    image.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)
        for tile in image.tile
    ]


def unpack_as(payload: memoryview, layout: str) -> np.ndarray:
    """uint8 (H, W, C) of an image whose values are unpacked from another layout than theirs."""
    with open_image(payload) as image:
        set_layout(image, layout)
        image.load()
        return np.asarray(upright(image))
