"""Dataclasses as schemas: a mapping is validated into one strictly, and a mistake names the nearest right key."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from data_tools.errors import UserError, nearest


def build_section(schema: Any, values: dict[str, Any], place: str) -> Any:
    """Validate a mapping into the dataclass `schema`, strictly: unknown keys are errors that name the nearest one."""
    reject_unknown(schema, values, place)
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([place, *map(str, first["loc"])]).strip(".")
        raise UserError(f"{key}={first.get('input')!r}: {first['msg'].lower()}") from None


def reject_unknown(schema: Any, values: dict[str, Any], place: str) -> None:
    """Raise a `UserError` for the first key of `values` that the dataclass `schema` does not have."""
    known = {field.name: field for field in fields(schema)}
    for key, value in values.items():
        dotted = f"{place}.{key}".strip(".")
        if key not in known:
            raise UserError(
                f"{dotted}: unknown key;{nearest(str(key), list(known))} known: {', '.join(known)}"
            )
        default = known[key].default
        if is_dataclass(default):
            if not isinstance(value, (dict, type(default))):
                raise UserError(f"{dotted}={value!r}: is a section; write {dotted}.<key>=…")
            if isinstance(value, dict):
                reject_unknown(type(default), value, dotted)
        if isinstance(value, (list, tuple)):
            reject_unknown_in_entries(schema, key, value, dotted)


def reject_unknown_in_entries(schema: Any, key: str, values: list[Any] | tuple[Any, ...], place: str) -> None:
    """The same for a list of mappings, each of one dataclass."""
    entry = next(iter(get_args(get_type_hints(schema)[key])), None)
    for i, value in enumerate(values):
        if is_dataclass(entry) and isinstance(value, dict):
            reject_unknown(entry, value, f"{place}.{i}")


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
