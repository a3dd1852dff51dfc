"""What lies between the tensors that a place holds and those that a model has: refused, or told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from data_tools.errors import UserError

FEW = 4
"""Faults that still fit a line."""


@dataclass
class LoadingReport:
    """What of a folder or checkpoint was loaded, and how."""

    folder: str
    loaded: int = 0
    """Tensors taken as they are."""
    fitted: list[str] = field(default_factory=list)
    """Tensors that were fitted to another size, and how."""
    missing: list[str] = field(default_factory=list)
    """Tensors that the place lacks and that keep their initial values, as was allowed."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the place that a model does without: heads."""
    differing: list[str] = field(default_factory=list)
    """Settings that the weights were trained with and the model does not have."""

    def values(self) -> dict[str, Any]:
        """As an event of a run holds it."""
        return {"folder": self.folder, "tensors": self.loaded, "fitted": self.fitted, "missing": self.missing,
                "unused": self.unused, "differing": self.differing}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"loaded {self.loaded} tensors from {self.folder}"]
        lines += [f"  fitted  {line}" for line in self.fitted]
        lines += [f"  missing {name}" for name in self.missing]
        lines += [f"  unused  {name}" for name in self.unused]
        lines += [f"  differs {line}" for line in self.differing]
        return "\n".join(lines)


def refuse_gaps(place: str, gaps: dict[str, str], allowed: Iterable[str] = ()) -> None:
    """Raise a `UserError` that names every one of the `gaps` (tensor → what is wrong) but those that are allowed.

    Args:
        place: what does not fit, and what to do about it.
        allowed: patterns of tensors, such as `encoder.layer.11.*`.
    """
    faults = leave_out_allowed(gaps, allowed)
    if faults:
        lines = [f"{name} is {fault}" for name, fault in faults.items()]
        text = "; ".join(lines) if len(lines) <= FEW else "".join(f"\n  {line}" for line in lines)
        raise UserError(f"{place}: {text}")


def leave_out_allowed(gaps: dict[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """The gaps whose tensor none of the patterns fits."""
    return {n: fault for n, fault in gaps.items() if not any(fnmatch(n, pattern) for pattern in allowed)}
