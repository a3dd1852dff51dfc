"""What our optimizers share: states beside their parameters, shard by shard, and updates that are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.engine.shards import local


def parts(groups: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], slice]]:
    """Each group, with where its parameters stand in the list of all."""
    start = 0
    for group in groups:
        end = start + len(group["params"])
        yield group, slice(start, end)
        start = end


def state_of(optimizer: Optimizer, parameters: Sequence[Tensor], name: str) -> list[Tensor]:
    """This rank's part of a state as large as its parameter, zero at first."""
    for parameter in parameters:
        if name not in optimizer.state[parameter]:
            optimizer.state[parameter][name] = torch.zeros_like(parameter)
    return local([optimizer.state[parameter][name] for parameter in parameters])


def kept(optimizer: Optimizer, device: torch.device) -> Tensor:
    """1, or 0 where this update is to be left out: a scalar on the device, which nobody waits for."""
    found = getattr(optimizer, "found_inf", None)
    return torch.ones((), device=device) if found is None else 1 - found.to(device)


def drop_unless(keep: Tensor, gradients: Sequence[Tensor]) -> None:
    """Make gradients zero, in place, where an update is left out: they may be NaN, which no factor of 0 removes."""
    for gradient in gradients:
        gradient.masked_fill_(keep == 0, 0)
