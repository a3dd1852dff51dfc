"""Fixed position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from data_tools.errors import UserError


def sincos_2d(grid: int, dim: int) -> Tensor:
    """2-D sine-cosine positions as in MAE (util/pos_embed.py of the reference): (grid², dim), row by row.

    The first half of the width encodes the column, the second half the row; within each half, sines then cosines.

    Raises:
        UserError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise UserError(f"hidden_size={dim}: sine-cosine positions need a width divisible by 4")
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)], dim=1)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """(N,) positions → (N, dim): sines of all frequencies, then cosines; wavelengths from 2π to 10,000·2π."""
    frequencies = 10_000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double()[:, None] * frequencies  # (N, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (N, dim)
