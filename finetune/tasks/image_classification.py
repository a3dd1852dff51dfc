"""Image classification, with the small geometric augmentation that few labels need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from finetune.tasks.classification import Classification, ClassificationConfig
from finetune.tasks.mixing import draw_mixing, mix
from pretrain.config.schema import Range, Share
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
    mixup: NonNegativeFloat = 0.0
    """Blend each image, and its class, with another one: α of mixup (Zhang et al. 2017, arXiv:1710.09412); 0: none."""
    cutmix: NonNegativeFloat = 0.0
    """Paste a box of another one into it: α of CutMix (Yun et al. 2019, arXiv:1905.04899); 0: none."""
    mix_share: Share = 1.0
    """Share of images that are mixed, where mixup or cutmix is set."""
    cutmix_share: Share = 0.5
    """Share of those that are mixed by cutmix, where both are set."""


class ImageClassification(Classification):
    """The class of an image."""

    Config = ImageClassificationConfig
    modality = "image"
    auto_model = "AutoModelForImageClassification"

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """As all tasks have it. Mixed with another one: "other_class", and the "share" of the own class."""
        example = super().example(sample, rng)
        if not self.config.mixup and not self.config.cutmix:
            return example
        share, box = draw_mixing(self.config, example["image"].shape[1:], rng)
        # Any sample, decoded once more: one of the same batch would be another one on another number of ranks.
        other = self.dataset.dataset[int(rng.integers(len(self.dataset)))]
        other = super().example(other, rng)
        image = mix(example["image"], other["image"], share, box)
        return {**example, "image": image, "other_class": other["class"], "share": np.float32(share)}

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Against both classes of what is mixed, each by its share."""
        if "share" not in batch:
            return super().cross_entropy(logits, batch)
        own, other = (
            F.cross_entropy(
                logits, batch[name], reduction="none", label_smoothing=self.config.label_smoothing
            )
            for name in ("class", "other_class")
        )
        return other.lerp(own, batch["share"]).sum()

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
