"""Autoencoder (Hinton & Salakhutdinov 2006): squeeze an image through a narrow vector and draw it again.

With noise it is the denoising autoencoder (Vincent et al. 2008): the corrupted image goes in, the clean one is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.image_decoders import DECODERS
from pretrain.objectives.token_projection import TokenProjection
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class AutoencoderConfig:
    name: str = "autoencoder"
    latent_size: PositiveInt = 32
    """Numbers that an image is squeezed into."""
    decoder: Literal["convolutional", "mlp"] = "convolutional"
    decoder_width: PositiveInt = 64
    loss: Literal["mse", "bce"] = "mse"
    """Per pixel in [0, 1]: squared error, or binary cross-entropy."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the Gaussian noise on what the encoder sees; 0 is the plain autoencoder."""


class Autoencoder(Objective):
    """Mean over pixels of the error between an image and its reconstruction, averaged over images."""

    Config = AutoencoderConfig
    hides = "all but a narrow vector; with `noise`, the clean image"
    needs: ClassVar[Mapping[str, str]] = {"images": "an autoencoder needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder

    def __init__(self, config: AutoencoderConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        sizes = encoder.config
        self.roles["bottleneck"] = TokenProjection(encoder, config.latent_size)
        self.roles["decoder"] = DECODERS[config.decoder](
            config.latent_size, sizes.num_channels, sizes.image_size, config.decoder_width
        )

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W)}, and with noise the corrupted one as "image" and the clean one as "target"."""
        view = self.view(sample)
        if not self.config.noise:
            return view
        clean = view["image"].astype(np.float32) / (255 if view["image"].dtype == np.uint8 else 1)
        noise = rng.normal(0, self.config.noise, clean.shape).astype(np.float32)
        return {"image": clean + noise, "target": clean}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        target = to_unit_range(batch["target" if "target" in batch else "image"])  # (B, C, H, W)
        drawing = self.draw(batch).float()
        if self.config.loss == "bce":
            error = F.binary_cross_entropy_with_logits(drawing, target, reduction="none")
        else:
            error = (drawing - target).pow(2)
        return Loss(error.flatten(1).mean(1).sum())

    def draw(self, batch: Batch) -> Tensor:
        """What the decoder makes of the latent vectors: (B, C, H, W); logits where the loss is `bce`."""
        return self.roles["decoder"](self.roles["bottleneck"](self.roles["encoder"](batch)))

    def reconstruct(self, batch: Batch) -> Tensor:
        """Images as the autoencoder gives them back: (B, C, H, W) in [0, 1]."""
        drawing = self.draw(batch).float()
        return drawing.sigmoid() if self.config.loss == "bce" else drawing.clamp(0, 1)

    def picture(self, batch: Batch) -> ImageGrid:
        seen = {"corrupted": to_unit_range(batch["image"]).clamp(0, 1)} if "target" in batch else {}
        original = to_unit_range(batch["target" if "target" in batch else "image"])
        return ImageGrid({"original": original, **seen, "reconstruction": self.reconstruct(batch)})


def to_unit_range(image: Tensor) -> Tensor:
    """Bytes or floats → floats with white at 1."""
    return image.float() / 255 if image.dtype == torch.uint8 else image
