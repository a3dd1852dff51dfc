"""The optimizer that the configuration names, over groups of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import parameter_groups
from pretrain.optim.lamb import LAMB
from pretrain.optim.lars import LARS
from pretrain.optim.muon import Muon


def build_optimizer(roles: dict[str, nn.Module], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `roles`.

    Each group keeps its share of the peak learning rate in `lr_ratio`; engines follow the schedules by `set_rates`.
    Where the engine sets `found_inf` to 1 (a scalar on the device), a step leaves parameters and states as they are.
    """
    groups = parameter_groups(roles, config)
    optimizer = build_named(groups, config)
    # Beside the groups, whose own values follow the schedule and are replaced when a checkpoint is read.
    optimizer.first_decays = [group["weight_decay"] for group in groups]  # type: ignore[attr-defined]
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, lr_factor: float, decay_factor: float) -> None:
    """Set the learning rate and weight decay of every group to a multiple of what they are configured to be."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * group["lr_ratio"] * lr_factor
    if decay_factor != 1.0:  # which it never is without a schedule
        for group, decay in zip(optimizer.param_groups, optimizer.first_decays, strict=True):  # type: ignore[attr-defined]
            group["weight_decay"] = decay * decay_factor


def build_named(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    lr, betas, eps = config.lr, config.betas, config.eps
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case "muon":
            return Muon(groups, lr, default(config.momentum, 0.95), betas, eps, fused)
        case "lamb":
            return LAMB(groups, lr, betas, eps)
        case "lars":
            return LARS(groups, lr, default(config.momentum, 0.9), default(config.trust_coefficient, 0.001))
        case "schedule_free":
            # Its library is an extra.
            from pretrain.optim.schedule_free import ScheduleFree

            return ScheduleFree(groups, lr, betas, eps)


def default(value: float | None, usual: float) -> float:
    return usual if value is None else value
