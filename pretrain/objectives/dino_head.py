"""DINO's head, and the two ways to keep its teacher from saying the same of all images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.image.vit_like import xavier_uniform
from pretrain.ops.world import World

SINKHORN_ROUNDS = 3


class DINOHead(nn.Module):
    """Three layers to a narrow unit vector, then its cosine with each of K prototypes.

    The last layer is weight-normed with all lengths at 1 (`norm_last_layer` of the reference), so only directions are
    kept.
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.mlp.apply(
            xavier_uniform
        )  # at the paper's width the reference's N(0, .02²); right for narrow heads too
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor, is_last_layer_frozen: bool = False) -> Tensor:
        """(B, D) → (B, K) in [−1, 1].

        A frozen layer has gradients of zero rather than none, which engines would wait for in vain; and its decay
        changes lengths alone. Adam's correction of its young averages runs on meanwhile, so that the first updates
        afterwards are a few times as long: the learning rate is still warming up then.
        """
        x = F.normalize(self.mlp(x), dim=1)
        weight = F.normalize(self.prototypes, dim=1)  # (K, d)
        if is_last_layer_frozen:
            weight = torch.lerp(weight.detach(), weight, 0.0)
        return F.linear(x, weight.to(x.dtype))


class Centre(nn.Module):
    """The moving average of the teacher's outputs over all ranks, subtracted from them.

    It moves after the step, by the whole global batch, so that micro-batches make no difference.
    """

    mean: Tensor
    total: Tensor
    rows: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("total", torch.zeros(dim), persistent=False)
        self.register_buffer("rows", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) → (B, dim), centred; while training, it is also noted for `follow`."""
        if self.training:
            self.total += x.sum(0)
            self.rows += len(x)
        return x - self.mean

    @torch.no_grad()
    def follow(self, world: World, momentum: float, skipped: Tensor) -> None:
        """Move towards the mean of all that was seen since the last step, unless that was skipped (1, else 0)."""
        total, rows = world.sum(torch.cat([self.total, self.rows])).split([len(self.total), 1])
        moved = self.mean.lerp(total / rows.clamp(min=1), 1 - momentum)
        self.mean.copy_(torch.where((skipped > 0) | (rows == 0), self.mean, moved))
        self.total.zero_()
        self.rows.zero_()


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, world: World) -> Tensor:
    """exp(logits / temperature) with rows that sum to 1 and columns that sum to the same, over all ranks' rows.

    After SwAV (Caron et al. 2020, arXiv:2006.09882) and DINOv2 (arXiv:2304.07193).

    Args:
        logits: (B, K) of this rank, in [−1, 1].
    Returns:
        (B, K), of which each row sums to 1.
    """
    q = ((logits - 1) / temperature).exp()  # at most 1; what is taken off cancels out
    rows = world.sum(q.new_full((), len(q)))
    q = q / world.sum(q.sum())
    for _ in range(SINKHORN_ROUNDS):
        q = q / world.sum(q.sum(0)) / q.shape[1]  # each prototype has the same
        q = q / q.sum(1, keepdim=True) / rows  # and each row
    return q * rows
