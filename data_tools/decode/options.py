"""Limits and choices of decoding, and what is said where they are passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_tools.errors import UserError


class DecodeError(ValueError):
    """The bytes are damaged, or beyond a limit."""


@dataclass(frozen=True)
class DecodeOptions:
    """Limits and choices; ``min_side`` lets JPEG be shrunk by 2, 4 or 8 while
    decoding, its shorter side staying ≥ min_side."""

    max_pixels: int = 64_000_000  # of an image, or of a frame of a film: 8000²
    max_page_values: int = (
        1 << 31
    )  # pages × height × width × channels, where all pages of an image file are read
    max_video_values: int = 1 << 31  # frames × height × width × channels
    max_audio_values: int = 1 << 29  # frames × channels, before and after resampling: 2 GiB of float32
    max_text_bytes: int = 256 << 20
    min_side: int | None = None
    sampling_rate: int | None = None  # resample audio to this rate with soxr
    raw: bool = False  # members stay as they are, memoryviews under their full extension


class MissingExtraError(UserError):
    """A format whose reader is not installed: this machine lacks something, the sample is sound."""


def import_extra(module: str, extra: str) -> Any:
    """The module of an optional extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return __import__(module)
    except ImportError:
        raise MissingExtraError(f"{module} is not installed: `pip install masquerade[{extra}]`") from None


def check_pixels(width: int, height: int, options: DecodeOptions) -> None:
    """Raise a DecodeError where an image, or a frame, is beyond the limit."""
    if width * height > options.max_pixels:
        raise DecodeError(f"{width}×{height} pixels are beyond the limit of {options.max_pixels}")
