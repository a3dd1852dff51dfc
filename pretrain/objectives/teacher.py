"""Teachers: copies of trained roles that no optimizer trains and that follow them slowly (Tarvainen & Valpola 2017,
arXiv:1703.01780)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from pretrain.ops.ema import follow

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy with the student's weights, which collects no gradients."""
    return copy.deepcopy(student).requires_grad_(False)


def follow_students(
    roles: Mapping[str, nn.Module],
    pairs: Iterable[tuple[str, str]],
    momentum: float,
    skipped: Tensor,
) -> None:
    """Each (teacher, student) of `roles`: teacher ← momentum · teacher + (1 − momentum) · student."""
    for teacher, student in pairs:
        follow(roles[teacher].parameters(), roles[student].parameters(), momentum, skipped)


def cosine_to_one(start: float, step: int, total_steps: int) -> float:
    """From `start` at step 0 along half a cosine towards 1 at the end of the run."""
    return 1 - (1 - start) * (math.cos(math.pi * step / total_steps) + 1) / 2


def linear_to_one(start: float, step: int, total_steps: int) -> float:
    """From `start` at step 0 along a line towards 1 at the end of the run."""
    return start + (1 - start) * step / total_steps
