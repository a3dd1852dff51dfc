"""Image files as cameras, scanners and drawing programs leave them, made by hand where Pillow does not write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def encode(image: Image.Image, form: str, orientation: int | None = None, **options) -> bytes:
    """The bytes of a file, with an EXIF orientation where one is given."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth RGB picture that no turn or flip leaves as it is."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(planes.astype(np.uint8))


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, of uint16 pixels (H, W, 1 to 4)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(pixels: np.ndarray, order: str = "<", compress: bool = False) -> bytes:
    """A TIFF of pixels (H, W) or (H, W, C) of any type, in one strip."""
    height, width, channels = *pixels.shape[:2], pixels[0, 0].size
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compress else data
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {
        256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [8 if compress else 1],
        262: [2 if channels > 1 else 1], 273: [0], 277: [channels], 278: [height], 279: [len(data)],
        **({338: [2]} if channels == 4 else {}), 339: [kind] * channels,
    }  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [end + sum(2 * len(values) for values in tags.values() if len(values) > 2)]
    directory, outside = struct.pack(f"{order}H", len(tags)), b""
    for tag, values in tags.items():
        if len(values) > 2:
            directory += struct.pack(f"{order}HHII", tag, 3, len(values), end + len(outside))
            outside += struct.pack(f"{order}{len(values)}H", *values)
        elif tag in (273, 279):
            directory += struct.pack(f"{order}HHII", tag, 4, 1, values[0])
        else:
            packed = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
            directory += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + directory + struct.pack(f"{order}I", 0) + outside + data
