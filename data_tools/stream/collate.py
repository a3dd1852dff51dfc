"""Examples → a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.errors import UserError

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack examples field by field: arrays and tensors to (B, …), int to int64, float to float32."""
    batch: dict[str, Tensor] = {}
    for name, first in examples[0].items():
        values = [example[name] for example in examples]
        try:
            batch[name] = _stack(first, values)
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(
                f"field {name!r} cannot be batched ({error}); let the transform make equal shapes"
            ) from None
    return batch


def _stack(first: Any, values: list[Any]) -> Tensor:
    if isinstance(first, Tensor):
        return torch.stack(values)
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(first, int | np.integer):  # bool too
        return torch.tensor(values, dtype=torch.bool if isinstance(first, bool) else torch.int64)
    if isinstance(first, float | np.floating):
        return torch.tensor(values, dtype=torch.float32)
    raise TypeError(f"{type(first).__name__} is neither array, tensor nor number")
