"""LAMB (You et al. 2019, arXiv:1904.00962): Adam's direction, each layer's step as long as its weights are large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.engine.shards import local, shard_group
from pretrain.optim.layerwise import ratio_or_one, whole_norms
from pretrain.optim.states import drop_unless, kept, parts, state_of


class LAMB(Optimizer):
    """Algorithm 2 of the paper with φ(z) = z. A group's `adapted` says whether it has a trust ratio."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        weights = local(parameters)
        keep = kept(self, weights[0].device)
        updates = [update for group in self.param_groups for update in self.directions(group, keep)]
        norms = whole_norms([*weights, *updates], shard_group(parameters[0]))
        trust_ratios = ratio_or_one(*norms.chunk(2))  # (n,)
        for group, part in parts(self.param_groups):
            if group["adapted"]:
                torch._foreach_mul_(updates[part], trust_ratios[part].unbind())
            torch._foreach_mul_(updates[part], keep * group["lr"])
            torch._foreach_sub_(weights[part], updates[part])

    def directions(self, group: dict[str, Any], keep: Tensor) -> list[Tensor]:
        """r + λx for each parameter of a group, its moments brought up to date."""
        (beta1, beta2), parameters = group["betas"], group["params"]
        gradients, weights = local([p.grad for p in parameters]), local(parameters)
        mean, square = (state_of(self, parameters, name) for name in ("exp_avg", "exp_avg_sq"))
        steps = [self.state[p].setdefault("step", torch.zeros((), device=keep.device)) for p in parameters]
        drop_unless(keep, gradients)
        torch._foreach_add_(steps, keep)
        torch._foreach_mul_(mean, 1 - keep * (1 - beta1))
        torch._foreach_add_(mean, gradients, alpha=1 - beta1)
        torch._foreach_mul_(square, 1 - keep * (1 - beta2))
        torch._foreach_addcmul_(square, gradients, gradients, value=1 - beta2)

        step = steps[0].clamp(min=1)  # all steps are the same; the first update may be one that is left out
        roots = torch._foreach_sqrt(square)
        torch._foreach_mul_(roots, (1 - beta2**step).rsqrt())
        torch._foreach_add_(roots, group["eps"])
        updates = list(torch._foreach_div(mean, roots))
        torch._foreach_mul_(updates, 1 / (1 - beta1**step))
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return updates
