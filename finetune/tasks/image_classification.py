"""Image classification, with the small geometric augmentation that few labels need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat

from finetune.tasks.classification import Classification, ClassificationConfig
from pretrain.config.schema import Range
from pretrain.objectives.base import Batch


@dataclass(frozen=True)
class ImageClassificationConfig(ClassificationConfig):
    name: str = "image_classification"
    shift: NonNegativeFloat = 0.0
    """Largest shift in both directions, in pixels."""
    rotate: NonNegativeFloat = 0.0
    """Largest rotation to either side, in degrees."""
    scale: Range = (1.0, 1.0)
    """Range of the enlargement."""
    shear: NonNegativeFloat = 0.0
    """Largest horizontal shear to either side, in degrees."""
    flip: bool = False
    """Mirror half of the images; not for digits or text."""


class ImageClassification(Classification):
    """The class of an image."""

    Config = ImageClassificationConfig
    modality = "image"
    auto_model = "AutoModelForImageClassification"

    def augment(self, view: Batch, rng: np.random.Generator) -> Batch:
        config = self.config
        image = view["image"]  # (C, S, S)
        if config.shift or config.rotate or config.shear or tuple(config.scale) != (1, 1):
            image = random_affine(image, rng, config.shift, config.rotate, config.scale, config.shear)
        if config.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, :, ::-1])
        return {**view, "image": image}


def random_affine(
    image: np.ndarray,
    rng: np.random.Generator,
    shift: float,
    rotate: float,
    scale: tuple[float, float],
    shear: float,
) -> np.ndarray:
    """(C, H, W) moved, turned, enlarged and sheared about its centre, bilinearly, zeros moving in."""
    height, width = image.shape[1:]
    dx, dy = rng.uniform(-shift, shift, 2)
    angle = math.radians(rng.uniform(-rotate, rotate))
    skew = math.tan(math.radians(rng.uniform(-shear, shear)))
    zoom = rng.uniform(*scale)
    # Pillow wants the inverse: where each pixel of the result comes from.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    a, b, d, e = cos, sin + skew * cos, -sin, cos - skew * sin
    cx, cy = (width - 1) / 2, (height - 1) / 2
    c = cx - a * (cx + dx) - b * (cy + dy)
    f = cy - d * (cx + dx) - e * (cy + dy)
    # Pillow maps pixel centres, half a pixel off the corner that the coefficients refer to.
    c, f = c + 0.5 - 0.5 * (a + b), f + 0.5 - 0.5 * (d + e)
    planes = [
        Image.fromarray(plane).transform(
            (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
        )
        for plane in image
    ]
    return np.stack([np.asarray(plane) for plane in planes])
