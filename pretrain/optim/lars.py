"""LARS (You et al. 2017, arXiv:1708.03888): SGD with momentum, each layer at a rate of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.engine.shards import local, shard_group
from pretrain.optim.layerwise import ratio_or_one, whole_norms
from pretrain.optim.states import drop_unless, kept, parts, state_of


class LARS(Optimizer):
    """Algorithm 1 of the paper. A group's `adapted` says whether it has a local rate; without, it is 1."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        weights, gradients = local(parameters), local([p.grad for p in parameters])
        keep = kept(self, weights[0].device)
        drop_unless(keep, gradients)
        norms = whole_norms([*weights, *gradients], shard_group(parameters[0]))
        weight_norms, gradient_norms = norms.chunk(2)  # (n,) each
        for group, part in parts(self.param_groups):
            steps = torch._foreach_add(gradients[part], weights[part], alpha=group["weight_decay"])
            if group["adapted"]:
                rates = local_rates(weight_norms[part], gradient_norms[part], group)
                torch._foreach_mul_(steps, rates.unbind())
            torch._foreach_mul_(steps, keep * group["lr"])
            buffers = state_of(self, group["params"], "momentum_buffer")
            torch._foreach_mul_(buffers, 1 - keep * (1 - group["momentum"]))
            torch._foreach_add_(buffers, steps)
            torch._foreach_sub_(weights[part], torch._foreach_mul(buffers, keep))


def local_rates(weight_norms: Tensor, gradient_norms: Tensor, group: dict[str, Any]) -> Tensor:
    """η‖w‖ / (‖∇w‖ + β‖w‖) of each parameter (n,)."""
    denominator = gradient_norms + group["weight_decay"] * weight_norms
    return ratio_or_one(group["trust_coefficient"] * weight_norms, denominator)
