"""Mixup and CutMix of single images, with the numbers of timm (data/mixup.py, mode "elem")."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pretrain.encoders.image.base import scale_bytes

Box = tuple[slice, slice]
"""Rows and columns."""


def draw_mixing(config: Any, size: tuple[int, ...], rng: np.random.Generator) -> tuple[float, Box | None]:
    """How much of an image of `size` (height, width) is its own, and where CutMix pastes; None: mixup blends.

    Args:
        config: with `mixup`, `cutmix`, `mix_share` and `cutmix_share`, see `ImageClassificationConfig`.
    """
    if rng.random() >= config.mix_share:
        return 1.0, None
    cuts = bool(config.cutmix) and (not config.mixup or rng.random() < config.cutmix_share)
    alpha = config.cutmix if cuts else config.mixup
    share = float(rng.beta(alpha, alpha))
    if not cuts:
        return share, None
    rows, columns = (draw_stretch(length, math.sqrt(1 - share), rng) for length in size)
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - pasted / math.prod(size), (rows, columns)


def draw_stretch(length: int, share: float, rng: np.random.Generator) -> slice:
    """About a share of a side, around a random place, cut off at the ends."""
    half, center = int(length * share) // 2, int(rng.integers(length))
    return slice(max(0, center - half), min(length, center + half))


def mix(image: np.ndarray, other: np.ndarray, share: float, box: Box | None) -> np.ndarray:
    """Two images (C, H, W) as one, floats in [0, 1]."""
    image, other = scale_bytes(image), scale_bytes(other)
    if box is None:
        return image * np.float32(share) + other * np.float32(1 - share)
    mixed = image.copy()
    mixed[:, *box] = other[:, *box]
    return mixed
