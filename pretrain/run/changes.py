"""Changing a run on purpose: which settings may become others at a restart, and what must follow then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, nearest
from data_tools.schema import put
from pretrain.checkpoint.folder import IDENTITY
from pretrain.config.rate_rule import forget_rules
from pretrain.config.sections import Config
from pretrain.config.show import to_dict
from pretrain.run.folder import CHANGEABLE, Changes, differences, is_changeable
from pretrain.tracking.environment import redact
from pretrain.tracking.metrics import read_metrics

CHANGED, BRANCHED = "changed", "branched"
"""Kinds of lines in `metrics.jsonl` that tell of it, with the `position` in the data from which it holds."""


def parse_changes(text: str | None) -> tuple[str, ...]:
    """`train.steps,optimizer.*` of the command line as keys and sections.

    Raises:
        UserError: one that can never change.
    """
    names = [name.strip().removesuffix(".*") for name in (text or "").split(",") if name.strip()]
    for name in names:
        if not is_changeable(name) and name != "optimizer":
            raise UserError(
                f"--allow-changes {name}: cannot change within a run;{nearest(name, list(CHANGEABLE))} these can: "
                f"{', '.join(CHANGEABLE)}; or all of optimizer.*"
            )
    return tuple(names)


def changes_since(checkpoint: Path, config: Config) -> Changes:
    """What differs from the settings that a checkpoint was saved under; nothing where it does not tell them."""
    path = checkpoint / IDENTITY
    before = json.loads(path.read_text()).get("config") if path.is_file() else None
    return differences(before, redact(to_dict(config))) if before else {}


def settings_at(run: Path, step: int, values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings when it took step `step` (as `metrics.jsonl` counts: 1 is the first), from those it has now.

    Raises:
        UserError: a step before the first.
    """
    if step < 1:
        raise UserError(f"--step {step}: the first step of a run is 1")
    values = forget_rules(values)  # what they came to then is told
    later = [line for line in read_metrics(run) if line["kind"] == CHANGED and line["step"] >= step]
    for line in reversed(later):
        for key, (before, _) in line["changes"].items():
            values = put(values, key.split("."), before)
    return values


def position_of(run: Path, step: int, config: Config) -> int:
    """Where in the data the batch of step `step` (1 is the first) starts, given the settings of that step."""
    told = [line for line in read_metrics(run) if line["kind"] in (CHANGED, BRANCHED) and line["step"] < step]
    if not told:
        return config.train.batch_sizes.position(step - 1)
    position = int(told[-1]["position"])
    for _ in range(step - 1 - told[-1]["step"]):
        position += config.train.batch_sizes.at(position)
    return position


def total_steps_at(run: Path, step: int) -> int | None:
    """How many steps the run was to have when it took step `step` (1 is the first); None where it does not tell."""
    starts = [line for line in read_metrics(run) if line["kind"] == "start" and line["step"] < step]
    return int(starts[-1]["total_steps"]) if starts else None
