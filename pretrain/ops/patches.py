"""Arrays on a grid of any number of axes ↔ patches: images (rows, columns), spectrograms (time, bands), clips (time,
rows, columns)."""

from __future__ import annotations

from math import prod

from torch import Tensor


def patchify(values: Tensor, patch: tuple[int, ...], channels_last: bool = True) -> Tensor:
    """(B, C, *sizes) → (B, N, P): patches row by row, the P = C · ∏ patch values of each in order of its axes.

    Args:
        patch: the size of a patch along each axis; divides that of the array.
        channels_last: the channels of a place stand together (as the MAE reference has its targets), or come before
            the axes of the patch (as the weight of a convolution has them).
    """
    batch, channels, *sizes = values.shape
    grid = [size // p for size, p in zip(sizes, patch, strict=True)]
    x = values.reshape(batch, channels, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    cells = range(2, 2 + 2 * len(patch), 2)
    within = [cell + 1 for cell in cells]
    x = x.permute(0, *cells, *([*within, 1] if channels_last else [1, *within]))
    return x.reshape(batch, prod(grid), channels * prod(patch))


def unpatchify(patches: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`, channels last: (B, N, P) → (B, C, *sizes), for N = ∏ grid."""
    batch, axes = len(patches), len(grid)
    x = patches.reshape(batch, *grid, *patch, -1)
    order = [
        axis for pair in zip(range(1, 1 + axes), range(1 + axes, 1 + 2 * axes), strict=True) for axis in pair
    ]
    sizes = (cells * p for cells, p in zip(grid, patch, strict=True))
    return x.permute(0, 1 + 2 * axes, *order).reshape(batch, -1, *sizes)
