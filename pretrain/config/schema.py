"""Dataclasses as schemas: a mapping is validated into one strictly, and a mistake names the nearest right key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_tools.errors import UserError, nearest


def build_section(schema: Any, values: dict[str, Any], place: str) -> Any:
    """Validate a mapping into the dataclass `schema`, at any depth.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type.
    """
    try:
        (built,) = validator(schema).validate_python((values,))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(explain(first, schema, first["loc"][1:], place)) from None
    refuse_booleans(values, built, place)
    return built


@cache
def validator(schema: Any) -> TypeAdapter[Any]:
    """Of one value; in a tuple, since pydantic hands a configuration down to plain dataclasses only from above."""
    return TypeAdapter(tuple[schema], config=ConfigDict(extra="forbid"))


def explain(error: Any, schema: Any, location: Iterable[Any], place: str) -> str:
    """What pydantic found, in one line: the dotted key, the value, and the nearest right key where it is unknown."""
    dotted = ".".join([place, *map(str, location)]).strip(".")
    match error["type"]:
        case "unexpected_keyword_argument":
            *above, key = location
            known = [field.name for field in fields(type_at(schema, above))]
            return f"{dotted}: unknown key;{nearest(str(key), known)} known: {', '.join(known)}"
        case "dataclass_type":
            return f"{dotted}={error['input']!r}: is a section; write {dotted}.<key>=…"
    return f"{dotted}={error.get('input')!r}: {error['msg'].lower()}"


def type_at(kind: Any, location: Iterable[Any]) -> Any:
    """The type of what stands at `location` in a value of type `kind`: a dataclass, `dict[str, X]`, `tuple[X, ...]`."""
    for part in location:
        if is_dataclass(kind):
            kind = get_type_hints(kind)[part]
        else:
            kind = get_args(kind)[-1 if get_origin(kind) is dict else 0]
        if NoneType in get_args(kind):  # X | None
            kind = next(one for one in get_args(kind) if one is not NoneType)
    return kind


def refuse_booleans(values: Any, built: Any, place: str) -> None:
    """Raise a `UserError` where `true` or `false` was taken for a number, as Python itself would."""
    if isinstance(values, bool) and not isinstance(built, bool):
        raise UserError(f"{place}={str(values).lower()}: must be a number, not true or false")
    if isinstance(values, dict):
        for key, value in values.items():
            inner = getattr(built, key) if is_dataclass(built) else built.get(key, value)
            refuse_booleans(value, inner, f"{place}.{key}".strip("."))
    elif isinstance(values, (list, tuple)):
        for i, (value, inner) in enumerate(zip(values, built, strict=True)):
            refuse_booleans(value, inner, f"{place}.{i}")


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
