"""Types that the sections of a configuration share; `data_tools.schema` validates them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveFloat
from pydantic_core import PydanticCustomError


def refuse_falling(values: tuple[float, float]) -> tuple[float, float]:
    """Raise for a range whose end lies below its beginning."""
    if values[0] > values[1]:
        raise PydanticCustomError("falling", "must rise, from the smallest to the largest")
    return values


Share = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(refuse_falling)]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
