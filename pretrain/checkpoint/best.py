"""The best checkpoint of a run, by one of the numbers that are measured while it trains: `checkpoint.keep_best`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, nearest
from pretrain.checkpoint.folder import find_fault, newest_valid

HOOK = "best"
"""Under which name of a hook checkpoints keep it."""
SMALLEST_IS_BEST = ("loss", "perplexity", "bits_per_byte", "cosine", "dead")
"""Names, or ends of names behind an underscore; of everything else the largest value is the best."""
NO_BEST = ("alpha_req", "intrinsic_dimension")
"""Of these neither is."""


class Best:
    """Which step was the best so far. The same on every rank."""

    def __init__(self, name: str | None = None) -> None:
        """``name``: `<kind>.<metric>`, such as `probe.linear`; None: no step is."""
        self.name = name
        self.kind, _, self.metric = (name or "").partition(".")
        self.step: int | None = None
        self.value = math.nan

    def note(self, kind: str, step: int, values: dict[str, Any]) -> bool:
        """Take notice of what was measured after `step` steps; return whether it is the best so far.

        Before the first step nothing is, for it has no checkpoint.

        Raises:
            UserError: the metric is not among what was measured.
        """
        if kind != self.kind:
            return False
        refuse_unknown(self.kind, self.metric, [name for name in values if isinstance(values[name], float)])
        value = values[self.metric]
        if step == 0 or not math.isfinite(value) or not self.improves(value):
            return False
        self.step, self.value = step, value
        return True

    def improves(self, value: float) -> bool:
        if self.step is None:
            return True
        return value < self.value if is_smallest_best(self.metric) else value > self.value

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step, "value": self.value if self.step else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was the best by the same metric; by another one, none is yet."""
        if state["name"] == self.name and state["step"]:
            self.step, self.value = state["step"], state["value"]


def is_smallest_best(metric: str) -> bool:
    last = metric.rsplit("/", maxsplit=1)[-1]
    return any(last == name or last.endswith(f"_{name}") for name in SMALLEST_IS_BEST)


def refuse_unknown(kind: str, metric: str, known: Iterable[str]) -> None:
    """Raise a `UserError` for a metric that is not measured, naming the nearest one that is, or that has no best."""
    place, known = f"checkpoint.keep_best={kind}.{metric}", list(known)
    if metric in NO_BEST:
        raise UserError(f"{place}: neither its largest nor its smallest value is the best; choose another")
    if metric not in known:
        raise UserError(f"{place}: is not measured;{nearest(metric, known)} known: {', '.join(known)}")


def best_step(progress: dict[str, Any]) -> int | None:
    """The best step that a checkpoint's progress tells of."""
    step: int | None = progress.get("hooks", {}).get(HOOK, {}).get("step")
    return step


def name_of(step: int | None) -> str | None:
    """The name of a step's checkpoint."""
    return None if step is None else f"step_{step:08d}"


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run folder, as its newest valid one tells.

    Raises:
        UserError: the run keeps none, or it is not there any more, or damaged.
    """
    newest, _ = newest_valid(run / "checkpoints")
    name = name_of(best_step(json.loads((newest / "progress.json").read_text()))) if newest else None
    if name is None:
        raise UserError(
            f"{run}: keeps no best checkpoint (yet); set checkpoint.keep_best, e.g. probe.linear, while it trains"
        )
    path = run / "checkpoints" / name
    fault = find_fault(path)
    if fault:
        raise UserError(
            f"{run}: its best checkpoint is not valid ({fault}); copy it back from checkpoint.targets"
        )
    return path
