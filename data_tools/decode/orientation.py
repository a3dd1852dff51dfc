"""Photographs lie as the camera was held, and EXIF says how; here they are turned upright."""

from __future__ import annotations

import struct
from typing import Any

ORIENTATION = 0x0112
"""The EXIF tag: 1 is upright."""
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
"""What makes each orientation upright, in Pillow's words. `ImageOps.exif_transpose` does the same, and writes the rest
of the EXIF block anew, at which a sound picture with a damaged block fails."""


def orientation_of(image: Any) -> int:
    """The EXIF orientation of an image of Pillow's, 1 to 8; 1 where there is none, or its block is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, OverflowError, struct.error):
        return 1
    return orientation if orientation in TURNS else 1


def turn(image: Any, orientation: int) -> Any:
    """An image of Pillow's, turned from an EXIF orientation to the upright one."""
    from PIL import Image

    return image if orientation == 1 else image.transpose(Image.Transpose[TURNS[orientation]])


def upright(image: Any) -> Any:
    """An image of Pillow's, turned as its EXIF orientation says; a TIFF was turned by Pillow when it was loaded."""
    return turn(image, orientation_of(image))
