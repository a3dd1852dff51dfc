"""Augmentation of single images on the CPU: numpy arrays (H, W, C) in, contiguous (C, *size) out."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

from pretrain.ops.sizes import ImageSize, rows_and_columns

Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def center_view(image: np.ndarray, size: ImageSize, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """The short side resized to `size`, then the centre: (H, W, C) → (C, size, size). Bytes stay; 16 bit is [0, 1].

    The box is where `ViTImageProcessor` resizes and crops whole pixels to, so that a release sees what training saw.
    A view that is not square has all of the image, whatever its aspect, as that processor has it too.
    """
    height, width = image.shape[:2]
    return resized_crop(image, center_box(height, width, size), size, interpolation)


def center_box(height: int, width: int, size: ImageSize) -> Box:
    """What `center_view` takes of an image of this size."""
    side, columns = rows_and_columns(size)
    if side != columns:
        return 0, 0, width, height
    short = min(height, width)
    new_height, new_width = int(side * height / short), int(side * width / short)
    top, left = (new_height - side) // 2 * height / new_height, (new_width - side) // 2 * width / new_width
    right = min(width, left + side * width / new_width)
    bottom = min(height, top + side * height / new_height)
    return left, top, right, bottom


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: ImageSize,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """A crop of random area (a fraction in `scale`) and aspect (in `ratio`), resized: (H, W, C) → (C, *size)."""
    height, width = image.shape[:2]
    return resized_crop(image, random_box(height, width, rng, size, scale, ratio), size, interpolation)


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    size: ImageSize,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """What a random crop takes of an image of this size: `ratio` is its aspect by that of `size`.

    After Inception's crop (Szegedy et al. 2015): ten tries for a crop that fits, then the centre.
    """
    rows, columns = rows_and_columns(size)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))) * (columns / rows)
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return center_box(height, width, size)


def random_view(
    image: np.ndarray,
    rng: np.random.Generator,
    size: ImageSize,
    crop_scale: tuple[float, float],
    interpolation: Interpolation,
    flip: bool,
) -> np.ndarray:
    """What masked image models see: a random crop, half of them mirrored where `flip` is set: (C, *size).

    A `crop_scale` of (1, 1) takes the whole image, as `center_view` does.
    """
    if tuple(crop_scale) == (1, 1):
        view = center_view(image, size, interpolation)
    else:
        view = random_resized_crop(image, rng, size, crop_scale, interpolation=interpolation)
    if flip and rng.random() < 0.5:
        view = np.ascontiguousarray(view[:, :, ::-1])
    return view


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
    image: np.ndarray, box: Box, size: ImageSize, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """The part of `image` within `box`, resized with antialiasing: (H, W, C) → (C, *size).

    Bicubic overshoots at edges: bytes are clipped, and so are 16 bits and floats, which come out in [0, 1].
    """
    sampling = FILTERS[interpolation]
    rows, columns = rows_and_columns(size)
    if box == (0, 0, columns, rows) and image.shape[:2] == (rows, columns):
        whole = image
    elif image.dtype == np.uint8 and image.shape[2] in (1, 3):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        whole = np.asarray(picture.resize((columns, rows), sampling, box=box)).reshape(rows, columns, -1)
    else:
        # Pillow has no other layouts: resize each channel as a plane of floats.
        planes = [
            np.asarray(Image.fromarray(plane).resize((columns, rows), sampling, box=box))
            for plane in image.transpose(2, 0, 1).astype(np.float32)
        ]
        whole = np.stack(planes, axis=2)
        if image.dtype == np.uint8:
            whole = whole.round().clip(0, 255).astype(np.uint8)
    if image.dtype == np.uint16:
        whole = (whole.astype(np.float32) / 65535).clip(0, 1)
    elif image.dtype != np.uint8:
        whole = whole.clip(0, 1)
    return whole.transpose(2, 0, 1).copy()  # (C, rows, columns), contiguous and writable
