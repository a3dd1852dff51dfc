"""Examples → a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.errors import UserError

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]

NAMED = 4  # samples that an error names at most

_Number = bool | int | float | np.bool_ | np.integer | np.floating


class FieldError(UserError):
    """A field that cannot be batched, and which of the examples are to blame for it."""

    def __init__(self, field: str, why: str, rows: Sequence[int], remedy: str) -> None:
        self.field, self.why, self.rows, self.remedy = field, why, list(rows), remedy
        super().__init__(self._text([f"number {row}" for row in rows]))

    def _text(self, names: list[str]) -> str:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"field {self.field!r}: {self.why} in {', '.join(names[:NAMED])}{more}; {self.remedy}"

    def named(self, keys: Sequence[str]) -> UserError:
        """The same, with the samples' keys."""
        return UserError(self._text([keys[row] for row in self.rows]))

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldError, (self.field, self.why, self.rows, self.remedy)


def collate_named(collate: Collate, examples: list[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """``collate(examples)``, whose errors name samples by their keys."""
    try:
        return collate(examples)
    except FieldError as error:
        raise error.named(keys) from None


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack examples field by field.

    Arrays and tensors become a tensor (B, …) of a type that holds all of theirs. Numbers become (B,): bool where all
    are, int64 where all are whole, else float32. Strings and bytes become a list of B. Raises UserError, naming field
    and samples, where some have a field and others do not, shapes or kinds differ, or NaN, which says that somebody's
    table had no value, stands among whole numbers.
    """
    names = dict.fromkeys(chain.from_iterable(examples))
    return {name: _stack(name, [example.get(name) for example in examples]) for name in names}


@dataclass(frozen=True)
class Pad:
    """A collate that pads ``fields``, arrays of different lengths, along their first axis with ``value``.

    A field (n, …) becomes (B, longest n, …), and ``<field>_length`` (B,) int64 holds every n; all other fields are
    collated as ever. Can be pickled, for worker processes.
    """

    fields: tuple[str, ...]
    value: float = 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rest = [{k: v for k, v in example.items() if k not in self.fields} for example in examples]
        batch = collate(rest)
        for name in self.fields:
            arrays = [_tensor(name, row, example.get(name)) for row, example in enumerate(examples)]
            lengths = [len(array) for array in arrays]
            strange = [row for row, array in enumerate(arrays) if not _holds(array, self.value)]
            if strange:
                why = f"is {arrays[strange[0]].dtype}, which does not hold the padding {self.value}"
                raise FieldError(
                    name, why, strange, "let the transform convert it, or pad with another value"
                )
            padded = [self._to_length(array, max(lengths)) for array in arrays]
            batch[name] = _stack(name, padded)
            batch[f"{name}_length"] = torch.tensor(lengths)
        return batch

    def _to_length(self, array: Tensor, length: int) -> Tensor:
        """(n, …) → (length, …)."""
        padded = array.new_full((length, *array.shape[1:]), self.value)
        padded[: len(array)] = array
        return padded


def _holds(array: Tensor, value: float) -> bool:
    """Whether arrays of this type can hold the value: no integer holds 0.5, and uint16 not -100."""
    if array.is_floating_point() or array.is_complex():
        return True
    if array.dtype == torch.bool:
        return value in (0, 1)
    limits = torch.iinfo(array.dtype)
    return limits.min <= value <= limits.max and value == int(value)


def _tensor(name: str, row: int, value: Any) -> Tensor:
    """An array with a first axis, as a tensor."""
    if value is None:
        raise _missing(name, [row])
    if isinstance(value, np.ndarray | Tensor) and value.ndim:
        return torch.as_tensor(value)
    raise FieldError(
        name, f"is {_kind(type(value))} and cannot be padded", [row], "let the transform make arrays"
    )


def _missing(name: str, rows: list[int]) -> FieldError:
    remedy = "let the transform leave it out, or give it a value, in all samples"
    return FieldError(name, "is missing", rows, remedy)


def _stack(name: str, values: list[Any]) -> Any:
    """A field's values, None where it is missing, as a tensor or a list."""
    types = set(map(type, values))  # one for thousands of values, which are then looked at all together
    if type(None) in types:
        raise _missing(name, [row for row, value in enumerate(values) if value is None])
    kinds = {_kind(type_) for type_ in types}
    if len(kinds) > 1:
        least = min(sorted(kinds), key=[_kind(type(value)) for value in values].count)
        rows = [row for row, value in enumerate(values) if _kind(type(value)) == least]
        others = " or ".join(sorted(kinds - {least}))
        raise FieldError(name, f"is {others}, but {least}", rows, "let the transform make one kind of it")
    kind = kinds.pop()
    if kind == "a number":
        return _stack_numbers(name, values, types)
    if kind in ("text", "bytes"):
        return values
    if kind != "an array":
        rows = list(range(len(values)))
        raise FieldError(name, f"is {kind}", rows, "let the transform take numbers or arrays out of it")
    try:
        if types == {np.ndarray}:
            return torch.from_numpy(np.stack(values))
        return torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, RuntimeError, ValueError) as error:
        raise _explain(name, values, error) from None


def _explain(name: str, values: list[Any], error: Exception) -> FieldError:
    """Why arrays cannot be stacked."""
    rows = [row for row, value in enumerate(values) if value.shape != values[0].shape]
    if rows:
        why = f"has the shape {tuple(values[0].shape)} first, but {tuple(values[rows[0]].shape)}"
        remedy = f"let the transform make equal shapes, or pad: collate=Pad(({name!r},))"
        return FieldError(name, why, rows, remedy)
    everywhere = list(range(len(values)))  # torch has no such type: text, dates, objects
    return FieldError(name, f"has no torch type ({error})", everywhere, "let the transform convert it")


def _stack_numbers(name: str, values: list[_Number], types: set[type]) -> Tensor:
    """(B,) of the smallest of bool, int64 and float32 that all values are."""
    if all(issubclass(of, bool | np.bool_) for of in types):
        return torch.tensor(values, dtype=torch.bool)
    if all(issubclass(of, bool | int | np.bool_ | np.integer) for of in types):
        try:
            whole = [int(value) for value in values] if np.bool_ in types else values
            return torch.tensor(whole, dtype=torch.int64)
        except (ValueError, RuntimeError, OverflowError):  # by the version of torch
            rows = [row for row, value in enumerate(values) if not -(1 << 63) <= int(value) < 1 << 63]
            remedy = "let the transform make it smaller"
            raise FieldError(name, "does not fit into 64 bits", rows, remedy) from None
    numbers = torch.tensor([_to_float(value) for value in values], dtype=torch.float32)
    if bool(numbers.isinf().any()):
        beyond = numbers.isinf().tolist()
        rows = [row for row, value in enumerate(values) if beyond[row] and abs(value) != float("inf")]
        if rows:
            raise FieldError(name, "does not fit into float32", rows, "let the transform scale it")
    if any(issubclass(of, int | np.integer) for of in types) and bool(numbers.isnan().any()):
        rows = numbers.isnan().nonzero().flatten().tolist()
        remedy = "leave these samples out, or let the transform give a value"
        raise FieldError(name, "is a whole number elsewhere, but not a number (NaN)", rows, remedy)
    return numbers


def _to_float(value: _Number) -> float:
    """As a float; infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _kind(of: type) -> str:
    if issubclass(of, np.ndarray | Tensor):
        return "an array"
    if issubclass(of, _Number):
        return "a number"
    if issubclass(of, str):
        return "text"
    return "bytes" if issubclass(of, bytes) else f"a {of.__name__}"
