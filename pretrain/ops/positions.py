"""Position embeddings on a grid of any number of axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from data_tools.errors import UserError

INTERPOLATION = {1: "linear", 2: "bicubic", 3: "trilinear"}
"""By the number of axes; images as `transformers` and DINO do it."""


def sincos_positions(grid: tuple[int, ...], dim: int) -> Tensor:
    """Fixed sine-cosine positions: (∏ grid, dim), row by row; on (rows, columns) those of MAE (util/pos_embed.py).

    Each axis has an equal part of the width, the last axis the first one; within each part, sines then cosines.

    Raises:
        UserError: `dim` cannot be divided so.
    """
    if dim % (2 * len(grid)):
        raise UserError(f"hidden_size={dim}: sine-cosine positions need a width divisible by {2 * len(grid)}")
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.cat([sincos_1d(axis.flatten(), dim // len(grid)) for axis in reversed(axes)], dim=1)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """(N,) positions → (N, dim): sines of all frequencies, then cosines; wavelengths from 2π to 10,000·2π."""
    frequencies = 10_000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double()[:, None] * frequencies  # (N, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (N, dim)


def interpolate_positions(table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Positions (N, D) of a grid for another one with as many axes; the table itself where the grids are the same."""
    if grid == wanted:
        return table
    x = table.float().reshape(1, *grid, -1).movedim(-1, 1)  # (1, D, *grid)
    x = F.interpolate(x, size=wanted, mode=INTERPOLATION[len(grid)], align_corners=False)
    return x.movedim(1, -1).reshape(-1, table.shape[-1]).to(table.dtype)
