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

    max_pixels: int = 64_000_000  # pixels × frames: 8000² images
    max_video_values: int = 1 << 31  # frames × height × width × channels
    max_audio_seconds: float = 3600.0
    max_text_bytes: int = 256 << 20
    min_side: int | None = None
    sampling_rate: int | None = None  # resample audio to this rate with soxr
    raw: bool = False  # members stay as they are, memoryviews under their full extension


def import_extra(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"{module} is not installed: `pip install masquerade[{extra}]`") from None
