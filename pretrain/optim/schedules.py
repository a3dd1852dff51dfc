"""Schedules of learning rate and weight decay as pure functions of the step."""

from __future__ import annotations

import math

from pretrain.optim.config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, total_steps: int, schedule: ScheduleConfig) -> float:
    """The fraction of the peak learning rate at `step` (0-based): linear warm-up, then the named decay.

    Step 0 already learns: the warm-up reaches the peak at its last step. The decay reaches `min_lr_ratio` at the end.
    """
    warmup = schedule.warmup(total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)  # in [0, 1)
    match schedule.name:
        case "cosine":
            decay = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            decay = 1 - progress
        case "wsd":
            falling = 1 - (total_steps - step) / (schedule.decay_ratio * total_steps)
            decay = 1 - math.sqrt(max(0.0, falling))
        case "step":
            decay = float(total_steps - step > schedule.decay_ratio * total_steps)
        case "inverse_sqrt":
            decay = math.sqrt(max(1, warmup) / (step + 1))
        case _:
            decay = 1.0
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * decay


def weight_decay_factor(step: int, total_steps: int, optimizer: OptimizerConfig) -> float:
    """What weight decay is multiplied by at `step` (0-based): 1 at first, and without `weight_decay_end` for ever."""
    if optimizer.weight_decay_end is None:
        return 1.0
    end = optimizer.weight_decay_end / optimizer.weight_decay
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, total_steps)))
