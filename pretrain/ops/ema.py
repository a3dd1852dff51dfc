"""The exponential moving average (Polyak & Juditsky 1992): one rule for averaged weights, teachers and generators."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pretrain.engine.shards import local


def update_ema(
    averages: Iterable[Tensor],
    values: Iterable[Tensor],
    decay: float,
    step: int,
    skipped: Tensor | None = None,
) -> None:
    """Let averages follow values, in place, each shard beside its own.

    Early on they forget faster, min(decay, (1 + step) / (10 + step)), so that initial weights do not linger.

    Args:
        step: 0-based.
        skipped: as in `follow`.
    """
    follow(averages, values, min(decay, (1 + step) / (10 + step)), skipped)


@torch.no_grad()
def follow(
    averages: Iterable[Tensor], values: Iterable[Tensor], decay: float, skipped: Tensor | None = None
) -> None:
    """Averages ← decay · averages + (1 − decay) · values, in place, each shard beside its own (a teacher, its student).

    Args:
        skipped: 1 where the update was left out (a scalar on the device), after which averages stay as they are; None:
            it was made.
    """
    own, newest = local(averages), local(values)
    if not own:
        return
    weight = torch.full((), 1 - decay, device=own[0].device)
    if skipped is not None:
        weight = weight * (1 - skipped.to(weight.device))
    torch._foreach_lerp_(own, [v.to(a.dtype) for a, v in zip(own, newest, strict=True)], [weight] * len(own))
