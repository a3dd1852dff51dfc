"""The configuration of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class CheckpointConfig:
    every: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: PositiveInt = 2
    """How many of the newest stay."""
    permanent_every: NonNegativeInt = 0
    """Checkpoints of every so many steps are never deleted; 0: only `keep` counts."""
    keep_best: str | None = None
    """What is measured while the run trains, such as `probe.linear`, `validation.loss` or `representation.rankme`: the
    checkpoint that was the best by it stays too, and is made at the step that was measured."""
    asynchronous: bool = True
    """Training goes on while a copy in host memory is written; DeepSpeed's own format is always waited for."""
    on_failure: Literal["stop", "warn"] = "stop"
    """What to do when one cannot be written or copied (a full disk): stop the run, or warn and train on."""
    targets: tuple[str, ...] = ()
    """Where each checkpoint is copied to, in the background: URLs that fsspec opens, e.g. s3://bucket/runs/x."""
    target_patience: PositiveFloat = 300.0
    """Seconds for which a target that does not answer is waited for."""
