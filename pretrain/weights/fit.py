"""Tensors of one size from those of another: position embeddings interpolated, kernels summed over channels."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data_tools.errors import UserError

MAY_DIFFER = ("image_size", "num_channels", "max_position_embeddings", "n_positions")
"""Settings whose tensors are fitted where they are other than a folder's."""


def fit_tensor(name: str, tensor: Tensor, shape: torch.Size, folder: Path) -> tuple[Tensor, str | None]:
    """A tensor in another shape, in fp32, and how it was fitted (None: the shapes are the same, and it is untouched).

    Raises:
        UserError: nothing is known that would fit it.
    """
    if tensor.shape == shape:
        return tensor, None
    tensor = tensor.float()
    if "position_embeddings" in name and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
        return interpolate_grid(tensor, shape[1]), "interpolated over the grid"
    if ("position_embeddings" in name or name == "wpe.weight") and tensor.shape[1:] == shape[1:]:
        return interpolate_length(tensor, shape[0]), "interpolated over the length"
    if tensor.ndim == 4 and (tensor.shape[0], *tensor.shape[2:]) == (shape[0], *shape[2:]):
        return fit_channels(tensor, shape[1]), f"{tensor.shape[1]} → {shape[1]} channels"
    raise UserError(
        f"{folder}: {name} has shape {tuple(tensor.shape)}, the encoder's settings ask for {tuple(shape)}; leave those "
        f"settings out (only {', '.join(MAY_DIFFER)} may differ from the folder's)"
    )


def interpolate_grid(positions: Tensor, count: int) -> Tensor:
    """(1, 1 + n², D) → (1, count, D), the class token's first and as it is (MAE's util/pos_embed.py)."""
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(count - 1)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


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
