"""Giving up on a run whose updates are left out again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from data_tools.errors import UserError
from pretrain.config.sections import Config
from pretrain.engine.base import Engine
from pretrain.metering.phase_values import PhaseValues
from pretrain.tracking.tracks import Tracks


def stop_if_stuck(
    step: int,
    newest: Mapping[str, PhaseValues],
    keys: Sequence[Sequence[str]],
    engine: Engine,
    tracker: Tracks | None,
    config: Config,
) -> None:
    """Raise a `UserError` where too many updates of a phase were left out in a row. All ranks agree: they know the
    same norms.

    Args:
        newest: of each phase, by its name, what its newest step came to.
        keys: of this rank's samples, by micro-batch.
    """
    in_a_row = torch.stack([values.skipped_in_a_row for values in newest.values()]).tolist()
    worst, name = max(zip(in_a_row, newest, strict=True), key=lambda pair: pair[0])
    if worst < config.train.max_skipped_steps:
        return
    every_key = [key for rank in engine.gather(keys) for micro in rank for key in micro]
    if tracker:
        values = {"skipped_in_a_row": int(worst), "phase": name, "keys": every_key}
        tracker.event("aborted", step, values)
    of_phase = f" of the phase {name!r}" if len(newest) > 1 else ""
    raise UserError(
        f"step {step}: the gradient was not finite, or a spike, in the last {int(worst)} updates{of_phase} "
        f"(train.max_skipped_steps); the batch's samples: {', '.join(every_key[:4])} … (all in metrics.jsonl); lower "
        f"optimizer.lr, or look at the step: python -m pretrain replay {config.folder} --step {step}"
    )
