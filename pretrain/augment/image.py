"""Augmentation of single images on the CPU: numpy arrays (H, W, C) in, contiguous (C, S, S) out."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def center_view(image: np.ndarray, size: int, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """The short side resized to `size`, then the centre: (H, W, C) → (C, size, size). Bytes stay; 16 bit is [0, 1].

    The box is where `ViTImageProcessor` resizes and crops whole pixels to, so that a release sees what training saw.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    top, left = (new_height - size) // 2 * height / new_height, (new_width - size) // 2 * width / new_width
    right = min(width, left + size * width / new_width)
    bottom = min(height, top + size * height / new_height)
    return resized_crop(image, (left, top, right, bottom), size, interpolation)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """A crop of random area (a fraction in `scale`) and aspect (in `ratio`), resized: (C, size, size).

    After Inception's crop (Szegedy et al. 2015): ten tries for a crop that fits, then the centre.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return resized_crop(image, (left, top, left + w, top + h), size, interpolation)
    return center_view(image, size, interpolation)


def random_shift(image: np.ndarray, rng: np.random.Generator, pixels: int) -> np.ndarray:
    """(C, H, W) moved by up to `pixels` in both directions, zeros moving in."""
    dy, dx = rng.integers(-pixels, pixels + 1, size=2)
    height, width = image.shape[1:]
    shifted = np.zeros_like(image)
    shifted[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return shifted


def resized_crop(
    image: np.ndarray, box: Box, size: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """The part of `image` within `box`, resized with antialiasing: (H, W, C) → (C, size, size).

    Bicubic overshoots at edges: bytes are clipped, and so are 16 bits and floats, which come out in [0, 1].
    """
    sampling = FILTERS[interpolation]
    if box == (0, 0, size, size) and image.shape[:2] == (size, size):
        whole = image
    elif image.dtype == np.uint8 and image.shape[2] in (1, 3):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        whole = np.asarray(picture.resize((size, size), sampling, box=box)).reshape(size, size, -1)
    else:
        # Pillow has no other layouts: resize each channel as a plane of floats.
        planes = [
            np.asarray(Image.fromarray(plane).resize((size, size), sampling, box=box))
            for plane in image.transpose(2, 0, 1).astype(np.float32)
        ]
        whole = np.stack(planes, axis=2)
        if image.dtype == np.uint8:
            whole = whole.round().clip(0, 255).astype(np.uint8)
    if image.dtype == np.uint16:
        whole = (whole.astype(np.float32) / 65535).clip(0, 1)
    elif image.dtype != np.uint8:
        whole = whole.clip(0, 1)
    return whole.transpose(2, 0, 1).copy()  # (C, size, size), contiguous and writable
