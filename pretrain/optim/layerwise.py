"""Trust ratios: how far a layer's update reaches, from the norms of whole parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def whole_norms(shards: Sequence[Tensor], group: ProcessGroup | None) -> Tensor:
    """The norm of each whole parameter (n,): the shards' squared norms are summed over ranks in one all-reduce."""
    squares = torch.stack(torch._foreach_norm(list(shards))).square()  # (n,)
    if group is not None:
        dist.all_reduce(squares, group=group)
    return squares.sqrt()


def ratio_or_one(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator (n,), and 1 where either is 0: a weight that starts at zero must be able to move."""
    return torch.where((numerator > 0) & (denominator > 0), numerator / denominator, 1.0)
