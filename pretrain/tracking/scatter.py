"""Points in the plane as an image, coloured by label: what a map of embeddings is drawn with."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#000000",
)
"""Of classes; samples of others, or of none, are grey."""
OTHER, INK = "#c3c8d0", "#464c59"
PLOT, LEGEND, LINE, MARGIN = 440, 180, 22, 14  # pixels
FINER = 2
"""It is drawn so many times as large, and made smaller, so that dots are round."""


def scatter(points: NDArray[np.floating[Any]], labels: list[Any], title: str) -> Tensor:
    """Points (N, 2) as dots in a square, title below, classes in a legend beside it: (3, H, W) in [0, 1].

    The most frequent classes have colours; labels that are None are of no class.
    """
    colours = colour_classes(labels)
    size = ((PLOT + LEGEND * bool(colours)) * FINER, (PLOT + 2 * LINE) * FINER)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14 * FINER)
    draw.rectangle((0, 0, PLOT * FINER - 1, PLOT * FINER - 1), outline="#dfe3ea", width=FINER)
    for (x, y), label in sorted(zip(fit(points), labels, strict=True), key=lambda dot: dot[1] in colours):
        dot(draw, x, y, colours.get(label, OTHER))
    legend = [*((str(label), colour) for label, colour in colours.items())]
    if colours and any(label not in colours for label in labels):
        legend.append(("others", OTHER))
    for line, (name, colour) in enumerate(legend):
        y = (MARGIN + line * LINE) * FINER
        dot(draw, (PLOT + 22) * FINER, y, colour)
        text = name if len(name) <= 18 else f"{name[:17]}…"
        draw.text(((PLOT + 34) * FINER, y), text, fill=INK, font=font, anchor="lm")
    draw.text((0, (PLOT + LINE) * FINER), title, fill=INK, font=font, anchor="lm")
    small = canvas.resize((size[0] // FINER, size[1] // FINER), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255


def colour_classes(labels: list[Any]) -> dict[Any, str]:
    """Colours of the most frequent classes, in the order of their names, or of their numbers."""
    counts = Counter(label for label in labels if label is not None)
    most = sorted(counts, key=lambda label: (-counts[label], str(label)))[: len(COLOURS)]
    most.sort(key=lambda label: (not isinstance(label, int), label if isinstance(label, int) else str(label)))
    return dict(zip(most, COLOURS, strict=False))


def fit(points: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Points (N, 2) → pixels of the square, in one scale for both axes, y upwards."""
    low, high = points.min(0), points.max(0)
    scale = (PLOT - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    centred = (points - (low + high) / 2) * scale
    return (centred * np.array([1, -1]) + PLOT / 2) * FINER


def dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: str) -> None:
    radius = 3.5 * FINER
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")
