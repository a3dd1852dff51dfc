"""Class numbers mean something only beside the names that a data set's manifest gives them; these are compared."""

from __future__ import annotations

from typing import Any

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
    """The names by which two data sets' classes are compared, and what is to be told of that.

    Only where both name their classes can names be compared; else both are taken by number.
    """
    ours, theirs = class_names(train, field_name), class_names(test, field_name)
    if ours is not None and theirs is not None:
        return ours, theirs, None
    if ours == theirs:
        return None, None, None
    named, bare = ("training", "test") if theirs is None else ("test", "training")
    return (
        None,
        None,
        f"classes are compared by number: the {named} samples name them, the {bare} samples do not",
    )


def name_class(value: Any, names: list[str] | None) -> Any:
    """A class by its name; as it stands there where there are no names, or none for it."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if names is not None and is_number and 0 <= value < len(names) else value
