"""Attributes that are computed from an image or a text, so that no annotator is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np

from data_tools.decode.pixels import white_of

ROTATIONS = 4
TILES = 2
"""Rows and columns of a jigsaw's tiles."""
ORDERS = tuple(permutations(range(TILES**2)))
"""The 24 orders that they may lie in."""
THIN = 128
"""Pixels along each side that colours are looked for in, at most."""
COLOURFUL, COLOURED_SHARE = 0.2, 0.05
"""Least chroma of a pixel that has a hue, and least share of such pixels in an image that has a colour."""
GREYS = ("black", "grey", "white")
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUE_ENDS = (15, 45, 70, 165, 195, 255, 290, 345)
"""Degrees where each of them ends; red begins again at the last."""
ORIENTATIONS = ("vertical", "rising", "horizontal", "falling")
SHAPES = ("lower", "capitalised", "upper", "mixed", "number", "punctuation")
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s|$)")


def brightness(image: np.ndarray) -> float:
    """Mean over pixels and channels of an image (H, W, C), with white at 1."""
    return float(image.mean() / (white_of(image.dtype) or 1))


def contrast(image: np.ndarray) -> float:
    """Standard deviation over pixels of the mean over channels of an image (H, W, C), with white at 1."""
    return float(image.mean(axis=2).std() / (white_of(image.dtype) or 1))


def stroke_width(image: np.ndarray) -> float:
    """Dominant width of the strokes in an image (H, W, C) of bright ink on dark ground, in pixels.

    A stroke of length L and width w covers A = L·w pixels and has a boundary of P ≈ 2·L, so w ≈ 2·A / P. Ink is what
    is brighter than half of the brightest; an image without any has width 0.
    """
    grey = image.mean(axis=2)
    ink = np.pad(grey > grey.max() / 2, 1)
    boundary = np.count_nonzero(ink[1:] != ink[:-1]) + np.count_nonzero(ink[:, 1:] != ink[:, :-1])
    return 2 * np.count_nonzero(ink) / boundary if boundary else 0.0


def dominant_colour(image: np.ndarray) -> str:
    """The commonest of `HUES` among pixels that have one, in an image (H, W, C); where few have, of `GREYS`."""
    height, width = (max(1, size // THIN) for size in image.shape[:2])
    rgb = image[::height, ::width].reshape(-1, image.shape[2]) / (white_of(image.dtype) or 1)  # (N, C)
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    coloured = high - low > COLOURFUL
    if rgb.shape[1] < 3 or coloured.mean() < COLOURED_SHARE:
        grey = np.minimum((rgb.mean(axis=1) * 3).astype(int), 2)
        return GREYS[np.bincount(grey, minlength=3).argmax()]
    hue = np.digitize(degrees_of_hue(rgb[coloured, :3]), HUE_ENDS) % len(HUES)
    return HUES[np.bincount(hue, minlength=len(HUES)).argmax()]


def degrees_of_hue(rgb: np.ndarray) -> np.ndarray:
    """Colours (N, 3) that are not grey → their place on the colour wheel (N,), red at 0, green at 120, blue at 240."""
    red, green, blue = rgb.T
    high, chroma = rgb.max(axis=1), rgb.max(axis=1) - rgb.min(axis=1)
    sextant = np.select(
        [high == red, high == green],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    return 60 * sextant


def edge_orientation(image: np.ndarray) -> str | None:
    """Which of `ORIENTATIONS` most edges of an image (H, W, C) run in, weighted by how sharp they are; None: no edge.

    An edge runs across the gradient; rising means from the lower left to the upper right.
    """
    if min(image.shape[:2]) < 2:
        return None
    by_row, by_column = np.gradient(image.mean(axis=2))
    sharpness = np.hypot(by_row, by_column)
    if not sharpness.any():
        return None
    eighths = np.round(np.arctan2(by_row, by_column) / (np.pi / 4)).astype(int) % 4
    return ORIENTATIONS[np.bincount(eighths.ravel(), sharpness.ravel(), minlength=4).argmax()]


def rotate(image: np.ndarray, turns: int) -> np.ndarray:
    """A square image (C, S, S) turned by quarters (RotNet, Gidaris et al. 2018, arXiv:1803.07728)."""
    return np.ascontiguousarray(np.rot90(image, turns, axes=(1, 2)))


def shuffle_tiles(image: np.ndarray, order: int) -> np.ndarray:
    """An image (C, H, W) cut into tiles that lie in one of `ORDERS` (jigsaws, Noroozi & Favaro 2016, arXiv:1603.09246).

    What is left over at the right and the lower edge, where sides are odd, stays.
    """
    height, width = image.shape[1] // TILES, image.shape[2] // TILES
    places = [
        (slice(None), slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width))
        for r in range(TILES)
        for c in range(TILES)
    ]
    shuffled = image.copy()
    for place, source in zip(places, ORDERS[order], strict=True):
        shuffled[place] = image[places[source]]
    return shuffled


def sentence_length(text: str) -> float | None:
    """Words a sentence, on average; None without a word."""
    words = len(text.split())
    return words / max(1, len(SENTENCE_END.findall(text))) if words else None


def sentiment(text: str, lexicon: dict[str, float]) -> float | None:
    """Mean score of the words that a lexicon has; None where it has none of them."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())
    scores = [lexicon[word] for word in words if word in lexicon]
    return sum(scores) / len(scores) if scores else None


def word_shape(word: str) -> str:
    """Which of `SHAPES` a word has."""
    letters = [c for c in word if c.isalpha()]
    if any(c.isdigit() for c in word):
        return "number"
    if not letters:
        return "punctuation"
    if not any(c.isupper() for c in letters):
        return "lower"
    if letters[0].isupper() and not any(c.isupper() for c in letters[1:]):
        return "capitalised"
    return "upper" if all(c.isupper() for c in letters) else "mixed"


@dataclass(frozen=True)
class Derived:
    """What can be computed of a sample: of an image (H, W, C), a text, or each word of a text."""

    compute: Callable[..., Any]
    modality: Literal["image", "text"]
    classes: tuple[str, ...] = ()
    """The answers; none: it is a number."""
    of_words: bool = False


DERIVED: dict[str, Derived] = {
    "brightness": Derived(brightness, "image"),
    "contrast": Derived(contrast, "image"),
    "stroke_width": Derived(stroke_width, "image"),
    "dominant_colour": Derived(dominant_colour, "image", (*GREYS, *HUES)),
    "edge_orientation": Derived(edge_orientation, "image", ORIENTATIONS),
    "sentence_length": Derived(sentence_length, "text"),
    "sentiment": Derived(sentiment, "text"),
    "word_shape": Derived(word_shape, "text", SHAPES, of_words=True),
}
CHANGES: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]] = {
    "jigsaw": (shuffle_tiles, len(ORDERS)),
    "rotation": (rotate, ROTATIONS),
}
"""What is done to an image (C, S, S), and in how many ways; the attribute is which of them it was. In this order."""
