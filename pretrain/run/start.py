"""Where a run stands before its first step of this start, and what a person and its record are told of it."""

from __future__ import annotations

import logging
from pathlib import Path

from data_tools.errors import UserError
from pretrain.data import describe_mixture, warn_of_few_samples
from pretrain.run.changes import BRANCHED, CHANGED
from pretrain.run.folder import Changes
from pretrain.trainer import Trainer

log = logging.getLogger(__name__)


def fit_steps_to_progress(trainer: Trainer) -> None:
    """Count the steps of epochs from here, for they end at the same sample in batches of whatever size.

    Raises:
        UserError: the run is to be shorter than it is already.
    """
    train, loader = trainer.config.train, trainer.loader
    if train.epochs and trainer.step:
        left = train.epochs * loader.stream.samples_per_epoch - loader.position
        trainer.total_steps = trainer.step + train.batch_sizes.steps_for(max(0.0, left), loader.position)
    if trainer.step > trainer.total_steps:
        folder = trainer.config.folder
        raise UserError(
            f"{folder}: has taken {trainer.step} steps already, and is to take {trainer.total_steps}; give it more, or "
            f"begin another run at an earlier checkpoint of it: init_from={folder}@STEP init_with=progress"
        )


def tell_start(trainer: Trainer, broken: list[str] | None, changes: Changes, branched: Path | None) -> None:
    """Say, and record, where the run goes on, with what, and what is odd about it. Called on rank 0.

    Args:
        broken: the checkpoints that were passed over; None where the run starts anew.
        changes: what was changed on purpose.
        branched: the checkpoint of another run that it begins at.
    """
    record_start(trainer, broken, changes, branched)
    total, folder = trainer.total_steps, trainer.config.folder
    if broken is not None and trainer.step < total:
        print(f"going on from step {trainer.step} of {total} ({folder})", flush=True)
    elif broken is not None:
        print(f"all {total} steps are done ({folder})", flush=True)
    if branched:
        print(
            f"beginning at step {trainer.step} of {total}, with the state of {branched} ({folder})",
            flush=True,
        )
    for key, (before, now) in changes.items():
        print(f"  changed on purpose: {key} was {before}, is {now}", flush=True)
    for line in broken or []:
        log.warning("passed over: %s", line)
    for line in describe_mixture(trainer.loader):
        print(line, flush=True)
    if warning := warn_of_few_samples(trainer.loader, trainer.config.train, total):
        log.warning(warning)


def record_start(trainer: Trainer, broken: list[str] | None, changes: Changes, branched: Path | None) -> None:
    """The lines of `metrics.jsonl` that tell of it."""
    tracker, step, place = trainer.tracker, trainer.step, {"position": trainer.loader.position}
    assert tracker is not None
    if broken is not None:
        tracker.event("resume", step, {"broken_checkpoints": broken})
    if changes:
        tracker.event(CHANGED, step, {**place, "changes": changes})
    if branched:
        tracker.event(BRANCHED, step, {**place, "from": str(branched), "with": trainer.config.init_with})
