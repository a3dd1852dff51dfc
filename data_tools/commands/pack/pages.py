"""A file of several pages or frames → a file for each, without loss."""

from __future__ import annotations

import io
from collections.abc import Iterator

from data_tools.decode.image import is_deep_colour, open_image
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.orientation import upright


def split_pages(data: bytes, options: DecodeOptions) -> Iterator[tuple[str, bytes]]:
    """(extension, bytes) of each page of a TIFF (as TIFF) or frame of an animation (as PNG, drawn whole).

    Raises:
        DecodeError: all pages together are beyond the limit, or one holds what cannot be written again without loss.
    """
    form, extension = ("TIFF", "tif") if data[:2] in (b"II", b"MM") else ("PNG", "png")
    values = 0
    with open_image(memoryview(data)) as image:
        for number in range(image.n_frames):
            image.seek(number)
            values += image.width * image.height * len(image.getbands())
            if values > options.max_page_values:
                raise DecodeError(
                    f"{image.n_frames} pages of {image.width}×{image.height} are beyond the limit of "
                    f"{options.max_page_values} values"
                )
            if is_deep_colour(image, memoryview(data)):
                raise DecodeError(f"page {number} has 16-bit colour; split the file with another program")
            image.load()
            buffer = io.BytesIO()
            upright(image).save(buffer, form)
            yield extension, buffer.getvalue()
