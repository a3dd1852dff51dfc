"""Attributes that are computed from an image, so that no annotator is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_tools.decode.pixels import white_of

ROTATIONS = 4


def brightness(image: np.ndarray) -> float:
    """Mean over pixels and channels of an image (H, W, C), with white at 1."""
    return float(image.mean() / (white_of(image.dtype) or 1))


def stroke_width(image: np.ndarray) -> float:
    """Dominant width of the strokes in an image (H, W, C) of bright ink on dark ground, in pixels.

    A stroke of length L and width w covers A = L·w pixels and has a boundary of P ≈ 2·L, so w ≈ 2·A / P. Ink is what
    is brighter than half of the brightest; an image without any has width 0.
    """
    grey = image.mean(axis=2)
    ink = np.pad(grey > grey.max() / 2, 1)
    boundary = np.count_nonzero(ink[1:] != ink[:-1]) + np.count_nonzero(ink[:, 1:] != ink[:, :-1])
    return 2 * np.count_nonzero(ink) / boundary if boundary else 0.0


def rotate(image: np.ndarray, turns: int) -> np.ndarray:
    """A square image (C, S, S) turned by quarters (RotNet, Gidaris et al. 2018, arXiv:1803.07728)."""
    return np.ascontiguousarray(np.rot90(image, turns, axes=(1, 2)))


DERIVED: dict[str, Callable[[np.ndarray], float]] = {"brightness": brightness, "stroke_width": stroke_width}
