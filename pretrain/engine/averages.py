"""Averaged weights: those that are looked at and released, beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.engine.shards import local
from pretrain.ops.ema import update_ema

Parameters = dict[str, dict[str, nn.Parameter]]
"""By role and name."""


class Average(Protocol):
    """An average of the trained weights."""

    def update(self, roles: Iterable[str], step: int, skipped: Tensor | None = None) -> None:
        """The weights of `roles` have just been trained in the (0-based) step, unless that was `skipped` (0 or 1)."""

    def put(self) -> None:
        """Give the averages to the parameters, for good."""

    def in_place(self) -> Any:
        """A context in which parameters have their averages; afterwards they have every bit they had."""

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages by role and name."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class WeightAverage:
    """Exponential moving average of all trained weights by the rule of `update_ema`, in fp32."""

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.values = {
            role: {name: p.detach().float().clone() for name, p in own.items()}
            for role, own in parameters.items()
        }

    def update(self, roles: Iterable[str], step: int, skipped: Tensor | None = None) -> None:
        for role in roles:
            update_ema(self.values[role].values(), self.parameters[role].values(), self.decay, step, skipped)

    @torch.no_grad()
    def put(self) -> None:
        for role, own in self.parameters.items():
            for name, parameter in own.items():
                parameter.copy_(self.values[role][name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with restoring(self.parameters):
            self.put()
            yield

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for role, own in self.values.items():
            for name, value in own.items():
                value.copy_(state[role][name])


class OptimizerAverage:
    """The average that schedule-free optimizers keep: `eval()` gives it to the parameters, `train()` takes it back.

    That way and back is not exact, so the trained weights are kept meanwhile: looking must not change what is learned.
    """

    def __init__(self, parameters: Parameters, optimizers: list[Any]) -> None:
        self.parameters = parameters
        self.optimizers = optimizers

    def update(self, roles: Iterable[str], step: int, skipped: Tensor | None = None) -> None:
        """Nothing: a step of theirs does it."""

    def put(self) -> None:
        for optimizer in self.optimizers:
            optimizer.eval()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with restoring(self.parameters):
            self.put()
            try:
                yield
            finally:
                for optimizer in self.optimizers:
                    optimizer.train()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        with self.in_place():
            return {
                role: {name: p.detach().clone() for name, p in own.items()}
                for role, own in self.parameters.items()
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: it comes with the optimizers' own states."""


def trained_parameters(roles: Mapping[str, nn.Module]) -> Parameters:
    """The trainable parameters of each role; one that two roles share belongs to the first."""
    seen: set[nn.Parameter] = set()
    found: Parameters = {}
    for role, module in roles.items():
        found[role] = {n: p for n, p in module.named_parameters() if p.requires_grad and p not in seen}
        seen.update(found[role].values())
    return found


@contextmanager
def restoring(parameters: Parameters) -> Iterator[None]:
    """Within it, parameters may be overwritten; afterwards they have every bit they had."""
    own = local(p.detach() for role in parameters.values() for p in role.values())
    before = [tensor.clone() for tensor in own]
    try:
        yield
    finally:
        for tensor, value in zip(own, before, strict=True):
            tensor.copy_(value)
