"""Dataclasses as schemas: a mapping is validated into one strictly, and a mistake names the nearest right key.

Such mappings are the recipes of `pretrain` and `finetune`, and what commands take as ``key=value``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_tools.errors import UserError, nearest

UNKNOWN_KEY = "unexpected_keyword_argument"
"""What pydantic calls it."""


class SettingsLoader(yaml.SafeLoader):
    """PyYAML's safe loader, to which a key is a word: `on` names a setting, and is not true as YAML 1.1 has it."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"


def read_yaml(text: str) -> Any:
    """Settings as somebody wrote them."""
    return yaml.load(text, Loader=SettingsLoader)


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.steps=10` → (["train", "steps"], 10); the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"{text!r} (command line): an override is written key=value, e.g. train.steps=100")
    try:
        return key.split("."), read_yaml(value)
    except yaml.YAMLError:
        raise UserError(f"{key} (command line): the value is not valid YAML; quote it") from None


def put(values: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    """`values` with `value` at `path`, in mappings that are made where there are none."""
    key = next((known for known in values if str(known) == str(path[0])), path[0])
    if len(path) > 1:
        inner = values.get(key)
        value = put(inner if isinstance(inner, dict) else {}, path[1:], value)
    return {**values, key: value}


def build_section(schema: Any, values: dict[str, Any], place: str) -> Any:
    """Validate a mapping into the dataclass `schema`, at any depth.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or out of its range.
    """
    try:
        (built,) = validator(schema).validate_python((values,))
    except ValidationError as error:
        raise UserError(explain(most_telling(error.errors()), schema, values, place)) from None
    refuse_booleans(values, built, place)
    return built


@cache
def validator(schema: Any) -> TypeAdapter[Any]:
    """Of one value; in a tuple, since pydantic hands a configuration down to plain dataclasses only from above."""
    return TypeAdapter(tuple[schema], config=ConfigDict(extra="forbid", allow_inf_nan=False))


def most_telling(errors: list[Any]) -> Any:
    """Of what is wrong with the first wrong setting, an unknown key, else what lies deepest.

    A value that may be of several types has an error for each of them.
    """
    first = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return max(first, key=lambda error: (error["type"] == UNKNOWN_KEY, len(error["loc"])))


def explain(error: Any, schema: Any, values: dict[str, Any], place: str) -> str:
    """What pydantic found, in one line: the dotted key, the value, and the nearest right key where it is unknown."""
    location = path_of(error, values)
    dotted = ".".join([place, *map(str, location)]).strip(".")
    if error["type"] == UNKNOWN_KEY:
        *above, key = location
        section = type_at(schema, above)
        known = [field.name for field in fields(section)]
        meant = nearest(str(key), known) or nearest_below(str(key), section)
        return f"{dotted}: unknown key;{meant} known: {', '.join(known)}"
    if error["type"] == "dataclass_type":
        return f"{dotted}={error['input']!r}: is a section; write {dotted}.<key>=…"
    if error["type"] == "missing":
        return f"{dotted}: missing"
    wrong = error["msg"][:1].lower() + error["msg"][1:]
    wrong = wrong.replace("input should", "must").replace("valid tuple", "list, e.g. [a, b]")
    return f"{dotted}={error.get('input')!r}: {wrong}"


def nearest_below(key: str, section: Any) -> str:
    """` did you mean 'options.profile'?` where the key belongs into a section of this one; else nothing."""
    paths = (path for path in paths_below(section) if nearest(key, [path.rsplit(".", 1)[-1]]))
    return next((f" did you mean {path!r}?" for path in paths), "")


def paths_below(section: Any) -> Iterator[str]:
    """The dotted keys of the sections of a dataclass, at any depth."""
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from (f"{name}.{field.name}" for field in fields(kind))
            yield from (f"{name}.{path}" for path in paths_below(kind))


def path_of(error: Any, values: Any) -> list[Any]:
    """Where in `values` an error lies. Where a type is one of several, pydantic's own path names that one too."""
    *above, last = error["loc"][1:]
    path = []
    for part in above:
        if holds(values, part):
            path.append(part)
            values = values[part]
    return [*path, last] if holds(values, last) or error["type"] == "missing" else path


def holds(values: Any, key: Any) -> bool:
    """Whether a mapping has a key, or a list a place of that number."""
    if isinstance(values, (list, tuple)):
        return isinstance(key, int) and key < len(values)
    return isinstance(values, dict) and key in values


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
