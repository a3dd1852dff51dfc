"""Tensors of one size from those of another: position embeddings interpolated, kernels summed over channels."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.ops.positions import interpolate_positions

Grid = tuple[int, int]
MAY_DIFFER = ("image_size", "position_size", "num_channels", "max_position_embeddings", "n_positions")
"""Settings whose tensors are fitted where they are other than a folder's."""


def fit_tensor(
    name: str, tensor: Tensor, shape: torch.Size, folder: Path, grids: tuple[Grid, Grid] | None = None
) -> tuple[Tensor, str | None]:
    """A tensor in another shape, in fp32, and how it was fitted (None: the shapes are the same, and it is untouched).

    Args:
        grids: of images' positions, those of the folder and those wanted: of another grid with as many places, too.
    Raises:
        UserError: nothing is known that would fit it.
    """
    moved = grids is not None and grids[0] != grids[1] and "position_embeddings" in name and tensor.ndim == 3
    if tensor.shape == shape and not moved:
        return tensor, None
    tensor = tensor.float()
    if grids is not None and moved and tensor.shape[2] == shape[2]:
        return interpolate_grid(tensor, *grids), "interpolated over the grid"
    if ("position_embeddings" in name or name == "wpe.weight") and tensor.shape[1:] == shape[1:]:
        return interpolate_length(tensor, shape[0]), "interpolated over the length"
    if tensor.ndim == 4 and (tensor.shape[0], *tensor.shape[2:]) == (shape[0], *shape[2:]):
        return fit_channels(tensor, shape[1]), f"{tensor.shape[1]} → {shape[1]} channels"
    raise UserError(
        f"{folder}: {name} has shape {tuple(tensor.shape)}, the encoder's settings ask for {tuple(shape)}; leave those "
        f"settings out (only {', '.join(MAY_DIFFER)} may differ from the folder's)"
    )


def interpolate_grid(positions: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """(1, lead + N, D) of one grid for another; what leads (a class token) as it is (MAE's util/pos_embed.py)."""
    lead = positions.shape[1] - prod(grid)
    table = interpolate_positions(positions[0, lead:], grid, wanted)  # (N', D)
    return torch.cat([positions[:, :lead], table.unsqueeze(0)], dim=1)


def interpolate_length(positions: Tensor, count: int) -> Tensor:
    """(L, D) → (count, D): cut where it gets shorter, stretched where it gets longer."""
    if count <= len(positions):
        return positions[:count].clone()
    stretched = F.interpolate(
        positions.T[None], size=count, mode="linear", align_corners=True
    )  # (1, D, count)
    return stretched[0].T.contiguous()


def fit_channels(kernels: Tensor, channels: int) -> Tensor:
    """(D, c, p, p) → (D, channels, p, p): an image of equal channels keeps its response.

    Exactly so where the channels become one or some multiple; else its scale is kept.
    """
    old = kernels.shape[1]
    if channels == 1:
        return kernels.sum(1, keepdim=True)
    repeats = -(-channels // old)
    return kernels.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)
