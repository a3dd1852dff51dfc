"""Sizes of images as settings say them: one number for both sides, or (rows, columns)."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]
"""Of a square image, or its rows and columns."""


def rows_and_columns(size: Any) -> tuple[int, int]:
    """An `ImageSize` (a list, as JSON has it, too) as (rows, columns)."""
    if isinstance(size, int):
        return size, size
    rows, columns = size
    return int(rows), int(columns)
