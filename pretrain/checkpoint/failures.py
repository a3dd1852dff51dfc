"""What could not be saved, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.checkpoint.api import CheckpointException

from data_tools.errors import UserError
from data_tools.storage.atomic import FULL


@dataclass(frozen=True)
class Failure:
    """A checkpoint, or a copy of one, that could not be written."""

    step: int
    reason: str


def root_cause(error: BaseException) -> str:
    """The one line at the bottom of an error: DCP gathers those of all ranks, each with a stack."""
    if isinstance(error, CheckpointException) and error.failures:
        return root_cause(next(iter(error.failures.values()))[0])
    if error.__cause__ is not None:
        return root_cause(error.__cause__)
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.filename}: {error.strerror}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    told = isinstance(error, (OSError, RuntimeError, UserError)) or text == type(error).__name__
    return text if told else f"{type(error).__name__}: {text}"
