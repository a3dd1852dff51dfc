"""Text, JSON and labels."""

from __future__ import annotations

import json
import re
from typing import Any

from data_tools.decode.options import DecodeError, DecodeOptions

LONGEST_LABEL = 64
"""Bytes of a .cls member, white space included."""
LONGEST_SHOWN = 32
"""Bytes of one that an error shows."""
UNLABELLED = -1
"""The class number of a sample that has none, as scikit-learn and torchvision's STL-10 write it."""


def decode_text(payload: memoryview, _: str, options: DecodeOptions) -> str:
    """UTF-8; a byte-order mark before it is no character."""
    _check_text(payload, options)
    return str(payload, "utf-8").removeprefix("\ufeff")


def decode_json(payload: memoryview, _: str, options: DecodeOptions) -> Any:
    _check_text(payload, options)
    return json.loads(bytes(payload))


def _check_text(payload: memoryview, options: DecodeOptions) -> None:
    if len(payload) > options.max_text_bytes:
        raise DecodeError(f"{len(payload)} bytes of text are beyond the limit of {options.max_text_bytes}")


def decode_label(payload: memoryview, *_: object) -> int | None:
    """The class number that a .cls member holds: an integer ≥ 0, and nothing else; None for `UNLABELLED`."""
    text = payload[: LONGEST_LABEL + 1].tobytes().strip()
    if not re.fullmatch(rb"[+-]?[0-9]{1,18}", text) or len(payload) > LONGEST_LABEL:
        shown = text[:LONGEST_SHOWN].decode("utf-8", "replace")
        raise DecodeError(f"not a class number: {shown!r}" if text else "empty: no class number")
    number = int(text)
    if number < UNLABELLED:
        raise DecodeError(
            f"not a class number: {number}; classes are numbered from 0, and {UNLABELLED} is a sample without one"
        )
    return None if number == UNLABELLED else number
