"""Class numbers mean something only beside the names that a data set's manifest gives them; these are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_tools.errors import UserError
from pretrain.encoders.base import field

NUMBERED = "label"
"""The field of a sample whose numbers count in `classes` of the manifest."""


def class_names(dataset: Any, field_name: str) -> list[str] | None:
    """The names of the classes that a field of a data set numbers; None where it is no number, or has no names."""
    manifest = getattr(dataset, "manifest", None)
    names = manifest.about.get("classes") if manifest is not None and field_name == NUMBERED else None
    return [str(name) for name in names] if isinstance(names, list) else None


def comparable_names(
    train: Any, test: Any, field_name: str
) -> tuple[list[str] | None, list[str] | None, str | None]:
    """The names of two data sets' classes, by which they are compared, and what is to be told of that.

    Only where both name their classes can names be compared; else both are taken by number, and called by the names
    that one of them has.
    """
    ours, theirs = class_names(train, field_name), class_names(test, field_name)
    if ours is not None and theirs is not None:
        return ours, theirs, None
    if ours == theirs:
        return None, None, None
    names = ours if theirs is None else theirs
    named, bare = ("training", "test") if theirs is None else ("test", "training")
    return (
        names,
        names,
        f"classes are compared by number: the {named} samples name them, the {bare} samples do not",
    )


def read_label(sample: dict[str, Any], field_name: str, place: str) -> Any:
    """The label of a sample as it stands there; None where it is null.

    Raises:
        UserError: the sample has no such field, or it is no single value, NaN, or an empty text.
    """
    value = field(sample, field_name)
    if isinstance(value, (dict, list, np.ndarray)):
        raise UserError(f"{place}: holds a {type(value).__name__}, not a class; name a single value")
    if value == "" or value != value:  # noqa: PLR0124 - NaN alone is not equal to itself
        what = "an empty text" if value == "" else "NaN"
        raise UserError(
            f"{place}: is {what} in sample {sample.get('__key__')!r}, which is no class; write null where there is none"
        )
    return value


def name_class(value: Any, names: list[str] | None) -> Any:
    """A class by its name; as it stands there where there are no names, or none for it."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if names is not None and is_number and 0 <= value < len(names) else value


def find_label(sample: dict[str, Any], dataset: Any, field_name: str) -> Any:
    """The class of a sample by its name, for a legend; None where it has none, or what it has is no class."""
    try:
        value = read_label(sample, field_name, field_name)
    except UserError:  # it may lack the field
        return None
    return None if isinstance(value, float) else name_class(value, class_names(dataset, field_name))
