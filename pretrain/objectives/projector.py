"""The head between an encoder and a loss on whole samples (SimCLR's projection head, VICReg's expander)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.image.vit_like import xavier_uniform
from pretrain.ops.widen import widen

Norm = Literal["batch", "layer", "none"]
"""`batch`: over the micro-batches of all ranks together, as published."""
SumOverRanks = Callable[[Tensor], Tensor]
"""`World.sum`, which carries gradients."""


class Projector(nn.Module):
    """Linear layers with a norm and a ReLU between them."""

    def __init__(self, dim: int, sizes: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        widths = (dim, *sizes)
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in zip(widths, sizes, strict=False)])
        self.norms = nn.ModuleList([make_norm(norm, width) for width in sizes[:-1]])
        self.apply(xavier_uniform)

    def forward(self, x: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
        """(B, D) → (B, last of sizes). Called on all ranks together."""
        *inner, last = self.layers
        for layer, norm in zip(inner, self.norms, strict=True):
            x = layer(x)
            x = norm(x, sum_over_ranks) if isinstance(norm, BatchNorm) else norm(x)
            x = F.relu(x)
        return last(x)


class BatchNorm(nn.Module):
    """Each feature to zero mean and unit variance over all ranks' rows (Ioffe & Szegedy 2015, arXiv:1502.03167).

    It keeps no running statistics: nobody asks a head about a single sample.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
        """(B, dim) → (B, dim). Called on all ranks together."""
        wide = widen(x)
        rows = wide.new_full((1,), len(wide))
        total = sum_over_ranks(torch.cat([wide.sum(0), rows]))  # (dim + 1,)
        rows = total[-1:].detach()
        centred = wide - total[:-1] / rows
        variance = sum_over_ranks(centred.square().sum(0)) / rows  # (dim,)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


def make_norm(norm: Norm, dim: int) -> nn.Module:
    if norm == "batch":
        return BatchNorm(dim)
    return nn.LayerNorm(dim, eps=1e-6) if norm == "layer" else nn.Identity()
