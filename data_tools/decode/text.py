"""Text, JSON and labels."""

from __future__ import annotations

import json
from typing import Any

from data_tools.decode.options import DecodeError, DecodeOptions


def decode_text(payload: memoryview, _: str, options: DecodeOptions) -> str:
    _check_text(payload, options)
    return str(payload, "utf-8")


def decode_json(payload: memoryview, _: str, options: DecodeOptions) -> Any:
    _check_text(payload, options)
    return json.loads(bytes(payload))


def _check_text(payload: memoryview, options: DecodeOptions) -> None:
    if len(payload) > options.max_text_bytes:
        raise DecodeError(f"{len(payload)} bytes of text are beyond the limit of {options.max_text_bytes}")


def decode_label(payload: memoryview, *_: object) -> int:
    return int(bytes(payload[:32]))
