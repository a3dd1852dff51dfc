"""What the values of pixels mean, whatever depth they have: where white lies, and what is seen through them."""

from __future__ import annotations

from typing import Literal

import numpy as np

Colour = Literal["white", "black"] | tuple[int, int, int]
"""A name, or (red, green, blue) in bytes."""
NAMED = {"white": (255, 255, 255), "black": (0, 0, 0)}
ALPHA = (2, 4)
"""Numbers of channels of pictures whose last channel says how opaque a pixel is."""


def white_of(dtype: np.dtype) -> float | None:
    """The value of a white pixel: 255, 65,535, or 1 of floats; None of 32-bit integers, which have none in common."""
    if dtype.kind == "f":
        return 1.0
    return float(np.iinfo(dtype).max) if dtype in (np.uint8, np.uint16) else None


def lay_on(image: np.ndarray, colour: Colour = "white") -> np.ndarray:
    """A picture (H, W, C) without its alpha channel, as it looks on a background: (H, W, 1 or 3), of its own type.

    Pictures without an alpha channel are returned as they are.
    """
    if image.shape[2] not in ALPHA or (white := white_of(image.dtype)) is None:
        return image
    values = NAMED[colour] if isinstance(colour, str) else colour
    ground = np.array(values, dtype=np.float32) * (white / 255)  # (3,)
    if image.shape[2] == 2:
        ground = ground.mean(keepdims=True)  # (1,)
    alpha = image[..., -1:].astype(np.float32) / white  # (H, W, 1)
    seen = image[..., :-1] * alpha + ground * (1 - alpha)
    return (seen if image.dtype.kind == "f" else seen.round()).astype(image.dtype)


def opaque(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) with a last channel that hides all that lies behind it: (H, W, C + 1)."""
    full = white_of(image.dtype)
    return np.concatenate([image, np.full_like(image[..., :1], full)], axis=2)
