"""Crop-resize and blur of many images at once: every row of a result is a weighted sum of a few rows of its image.

Both are done by `embedding_bag`, which sums those few rows in a fixed order. So the bits of a result depend neither on
the images beside it nor on the number of threads, as those of matrix products and convolutions may.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of the kernel, in pixels of the result or of the image, whichever are larger."""


@dataclass(frozen=True)
class Taps:
    """Which rows are summed, with which weights, for each row of a result."""

    index: Tensor
    """(…, S, K), whole numbers."""
    weight: Tensor
    """(…, S, K), with a sum of 1 over K."""

    def flatten(self, start: int, end: int) -> Taps:
        return Taps(self.index.flatten(start, end), self.weight.flatten(start, end))

    def sum_rows(self, rows: Tensor) -> Tensor:
        """(B, R, F) → (B, S, F)."""
        batch, number, features = rows.shape
        _, size, taps = self.index.shape
        first = torch.arange(batch, device=rows.device).view(-1, 1, 1) * number
        index = (self.index + first).view(-1, taps)  # (B·S, K)
        weight = self.weight.to(rows.dtype).reshape(-1, taps)
        flat = rows.reshape(-1, features)  # (B·R, F)
        return F.embedding_bag(index, flat, mode="sum", per_sample_weights=weight).view(batch, size, features)


def resample(image: Tensor, vertical: Taps, horizontal: Taps) -> Tensor:
    """Images (B, H, W, C) → n results of each, (B·n, C, S, T).

    Args:
        vertical: taps (B, n·S, K).
        horizontal: taps (B·n, T, K).
    """
    width, channels = image.shape[2:]
    x = vertical.sum_rows(image.flatten(2))  # (B, n·S, W·C)
    x = x.view(len(horizontal.index), -1, width, channels)  # (B·n, S, W, C)
    size = x.shape[1]
    x = horizontal.sum_rows(x.transpose(1, 2).flatten(2))  # (B·n, T, S·C)
    return x.unflatten(2, (size, channels)).permute(0, 3, 2, 1).contiguous()  # (B·n, C, S, T)


def resize_taps(
    start: Tensor, end: Tensor, mirrored: Tensor, length: Tensor, size: int, kernel: str, longest: float
) -> Taps:
    """Taps that bring a stretch of each image to `size` pixels, as Pillow does (Resample.c): with antialiasing.

    Args:
        start, end: (B, n) where the stretch of each of n views begins and ends, in pixels.
        mirrored: (B, n), 1 where it is turned round.
        length: (B, 1) pixels of each image; none beyond are used.
        longest: no stretch has more pixels.
    Returns:
        (B, n, size, K).
    """
    scale = (end - start) / size  # (B, n)
    stretch = scale.clamp(min=1.0)[..., None, None]  # of the kernel, (B, n, 1, 1)
    places = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5  # (size,)
    places = torch.where(mirrored[..., None] > 0, size - places, places)  # (B, n, size)
    center = (start[..., None] + places * scale[..., None])[..., None]  # (B, n, size, 1)
    first = (center - SUPPORT[kernel] * stretch + 0.5).floor().clamp(min=0.0)
    count = 2 * math.ceil(SUPPORT[kernel] * max(1.0, longest / size)) + 1  # K
    index = first + torch.arange(count, device=start.device, dtype=start.dtype)  # (B, n, size, K)
    end_of_kernel = (center + SUPPORT[kernel] * stretch + 0.5).floor().minimum(length[..., None, None])
    weight = KERNELS[kernel]((index - center + 0.5) / stretch) * (index < end_of_kernel)
    weight = weight / weight.sum(-1, keepdim=True)
    index = index.minimum(length[..., None, None] - 1).long()
    return Taps(index, weight)


def triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0.0)


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = −½."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


KERNELS = {"bilinear": triangle, "bicubic": cubic}


def blur_taps(sigma: Tensor, size: int, width: int) -> Taps:
    """Taps of a Gaussian of `width` pixels (odd) over `size` rows, reflected at the edges; sigma (B, 1), 0 for none."""
    offsets = torch.arange(width, device=sigma.device, dtype=sigma.dtype) - width // 2
    weight = (-0.5 * (offsets / sigma.clamp(min=1e-3)) ** 2).exp()  # (B, K)
    weight = weight / weight.sum(1, keepdim=True)
    places = torch.arange(size, device=sigma.device)[:, None] + offsets.long()  # (size, K)
    index = (size - 1) - ((size - 1) - places.abs()).abs()
    shape = (len(sigma), size, width)
    return Taps(index.expand(shape), weight[:, None].expand(shape))
