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


def interpolate_positions(
    table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...], antialias: bool = False
) -> Tensor:
    """Positions (N, D) of a grid for another one with as many axes; the table itself where the grids are the same.

    Args:
        antialias: smooth what becomes smaller; on two axes only.
    """
    if grid == wanted:
        return table
    x = table.float().reshape(1, *grid, -1).movedim(-1, 1)  # (1, D, *grid)
    x = F.interpolate(x, size=wanted, mode=INTERPOLATION[len(grid)], align_corners=False, antialias=antialias)
    return x.movedim(1, -1).reshape(-1, table.shape[-1]).to(table.dtype)


def rotary_angles(grid: tuple[int, int], frequencies: Tensor) -> Tensor:
    """By how much the patches of a grid are rotated (Heo et al. 2024, arXiv:2403.13298, as DINOv3 has it), (N, 4·F).

    The centres of patches lie between −1 and 1 on both axes, whatever size the grid has. A head's first half holds F
    pairs' first numbers for the rows and F for the columns, its second half their partners.

    Args:
        frequencies: (F,), in turns by half an image.
    """
    axes = [
        2 * torch.arange(0.5, size, device=frequencies.device, dtype=frequencies.dtype) / size - 1
        for size in grid
    ]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
    angles = 2 * torch.pi * places.unsqueeze(2) * frequencies  # (N, 2, F)
    return angles.flatten(1).tile(2)  # (N, 4·F)
