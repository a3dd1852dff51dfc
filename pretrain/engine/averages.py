"""Averaged weights: those that are looked at and released, beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Parameters = dict[str, dict[str, nn.Parameter]]
"""By role and name."""


def trained_parameters(roles: Mapping[str, nn.Module]) -> Parameters:
    """The trainable parameters of each role; one that two roles share belongs to the first."""
    seen: set[nn.Parameter] = set()
    found: Parameters = {}
    for role, module in roles.items():
        found[role] = {n: p for n, p in module.named_parameters() if p.requires_grad and p not in seen}
        seen.update(found[role].values())
    return found


class WeightAverage:
    """Exponential moving average of all trained weights (Polyak & Juditsky 1992), in fp32, each shard beside its own.

    Early on it forgets faster, min(decay, (1 + step) / (10 + step)), so that the initial weights do not linger.
    """

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.values = {
            role: {name: p.detach().float().clone() for name, p in own.items()}
            for role, own in parameters.items()
        }

    @torch.no_grad()
    def update(self, roles: Iterable[str], step: int) -> None:
        """Move towards the weights of `roles` after the (0-based) step."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for role in roles:
            if own := local_tensors(self.parameters[role].values()):
                torch._foreach_lerp_(
                    local_tensors(self.values[role].values()), [p.float() for p in own], weight
                )

    @torch.no_grad()
    def put(self) -> None:
        """Give the averages to the parameters."""
        for role, own in self.parameters.items():
            for name, parameter in own.items():
                parameter.copy_(self.values[role][name])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for role, own in self.values.items():
            for name, value in own.items():
                value.copy_(state[role][name])


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shards, sharing memory with the tensors that are spread over ranks."""
    return [t.to_local().detach() if isinstance(t, DTensor) else t.detach() for t in tensors]


@contextmanager
def restoring(parameters: Parameters) -> Iterator[None]:
    """Within it, parameters may be overwritten; afterwards they have every bit they had."""
    own = local_tensors(p for role in parameters.values() for p in role.values())
    before = [tensor.clone() for tensor in own]
    try:
        yield
    finally:
        for tensor, value in zip(own, before, strict=True):
            tensor.copy_(value)
