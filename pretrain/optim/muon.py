"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for hidden matrices, AdamW for all else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from pretrain.engine.shards import local, shard_group
from pretrain.optim.exchange import on_whole_matrices
from pretrain.optim.states import drop_unless, kept, state_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic, from Jordan's post: they raise small singular values as fast as convergence to about 1 allows."""
ITERATIONS = 5
RMS = 0.2
"""Of an update's entries: as AdamW's, whose learning rate and decay therefore carry over
(Liu et al. 2025, arXiv:2502.16982)."""


class Muon(Optimizer):
    """Groups with `muon` true are orthogonalised, as matrices of all dimensions but the first flattened into one.

    Where parameters are sharded, each rank orthogonalises its share of the matrices (as Liu et al. do under ZeRO).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "fused": fused})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["muon"]:
                self.adamw_step(group)
        self.muon_step([group for group in self.param_groups if group["muon"]])

    def adamw_step(self, group: dict[str, Any]) -> None:
        """Torch's own AdamW, on whole DTensors."""
        parameters = group["params"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        mean, square, steps = (
            [self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        adamw(
            parameters, [p.grad for p in parameters], mean, square, [], steps,
            fused=group["fused"], found_inf=getattr(self, "found_inf", None), amsgrad=False, maximize=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], eps=group["eps"],
            weight_decay=group["weight_decay"],
        )  # fmt: skip

    def muon_step(self, groups: list[dict[str, Any]]) -> None:
        parameters = [p for group in groups for p in group["params"]]
        if not parameters:
            return
        directions = [d for group in groups for d in self.nesterov(group)]
        updates = iter(orthogonalized(parameters, directions))
        keep = kept(self, directions[0].device)
        for group in groups:
            for parameter, weight in zip(group["params"], local(group["params"]), strict=True):
                rate = group["lr"] * RMS * math.sqrt(max(shape_of(parameter)))
                weight.mul_(1 - keep * (group["lr"] * group["weight_decay"]))
                weight.sub_(next(updates).view_as(weight) * (keep * rate))

    def nesterov(self, group: dict[str, Any]) -> list[Tensor]:
        """This rank's rows of the gradients with momentum (averaged, as only their direction counts)."""
        gradients = local([p.grad for p in group["params"]])
        buffers = state_of(self, group["params"], "momentum_buffer")
        keep, momentum = kept(self, gradients[0].device), group["momentum"]
        drop_unless(keep, gradients)
        torch._foreach_mul_(buffers, 1 - keep * (1 - momentum))
        torch._foreach_add_(buffers, gradients, alpha=1 - momentum)
        directions = torch._foreach_mul(buffers, momentum)
        torch._foreach_add_(directions, gradients, alpha=1 - momentum)
        return list(directions)


def orthogonalized(parameters: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """This rank's rows (r, B) of every orthogonalised direction, on the device and in the type of the directions."""
    group = shard_group(parameters[0])
    device = (
        torch.device("cuda") if torch.cuda.is_available() else directions[0].device
    )  # also where offloaded
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = [shape_of(p) for p in parameters]
    rows = [d.reshape(-1, width).to(device, dtype) for d, (_, width) in zip(directions, shapes, strict=True)]
    if group is None:
        done = [newton_schulz(matrix) for matrix in rows]
    else:
        done = on_whole_matrices(newton_schulz, rows, shapes, group)
    return [matrix.to(d) for matrix, d in zip(done, directions, strict=True)]


def shape_of(parameter: Tensor) -> tuple[int, int]:
    """(A, B) of a whole parameter as a matrix: a convolution (O, I, h, w) is (O, I·h·w)."""
    return parameter.shape[0], math.prod(parameter.shape[1:])


def newton_schulz(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix nearest to (A, B): its singular values come to lie around 1."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the small side first, for a small Gram matrix
    x = x / x.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
