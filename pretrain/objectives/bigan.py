"""Bidirectional GAN (Donahue et al. 2017, arXiv:1605.09782; Dumoulin et al. 2017, arXiv:1606.00704).

The discriminator tells pairs of an image and what the encoder makes of it, (x, E(x)), from pairs of a latent vector
and what the generator makes of it, (G(z), z). Encoder and generator, who work against it together, win only where each
is the other's inverse: so the encoder learns what images are made of, and it is what is probed and released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.image.cnn import strided_convolutions
from pretrain.encoders.image.mlp import ACTIVATIONS
from pretrain.objectives.autoencoder import to_unit_range
from pretrain.objectives.base import Batch, Encoded, Loss, Objective, Phase
from pretrain.objectives.gan import discriminator_loss
from pretrain.objectives.image_decoders import ConvolutionalDecoder, PerceptronDecoder
from pretrain.objectives.token_projection import TokenProjection
from pretrain.objectives.vae import interpolate
from pretrain.ops.sizes import ImageSize, rows_and_columns
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

DISCRIMINATOR, R1, GENERATOR = "discriminator", "r1", "generator"


@dataclass(frozen=True)
class BiGANConfig:
    name: str = "bigan"
    latent_size: PositiveInt = 50
    latent: Literal["uniform", "normal"] = "uniform"
    """In [−1, 1], as in the paper, or of mean 0 and variance 1."""
    networks: Literal["convolutional", "mlp"] = "convolutional"
    """Of generator and discriminator."""
    generator_width: PositiveInt = 64
    discriminator_width: PositiveInt = 64
    hidden_sizes: tuple[PositiveInt, ...] = (1024, 1024)
    """Of the discriminator's layers that see a pair; with `networks: mlp` of the generator's too."""
    r1_gamma: NonNegativeFloat = 1.0
    """Weight of the gradient penalty on real images (Mescheder et al. 2018, arXiv:1801.04406); 0 leaves it out."""
    r1_every: PositiveInt = 16
    """Steps between penalties, each then this many times as strong (StyleGAN2's lazy regularisation)."""


class BiGAN(Objective):
    """The discriminator's phase, its gradient penalty, and the phase of encoder and generator."""

    Config = BiGANConfig
    hides = "which pairs of image and vector come from the encoder, which from the generator"
    needs: ClassVar[Mapping[str, str]] = {"images": "BiGAN needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder

    def __init__(self, config: BiGANConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        sizes = encoder.config
        self.roles["projection"] = TokenProjection(encoder, config.latent_size)
        self.roles["generator"] = Generator(config, sizes.num_channels, sizes.image_size)
        self.roles["discriminator"] = PairDiscriminator(config, sizes.num_channels, sizes.image_size)

    def phases(self) -> list[Phase]:
        discriminator = ("discriminator",)
        penalty = [Phase(R1, discriminator, DISCRIMINATOR, every=self.config.r1_every, fp32=True)]
        return [
            Phase(DISCRIMINATOR, discriminator, DISCRIMINATOR),
            *(penalty if self.config.r1_gamma else []),
            Phase(GENERATOR, ("encoder", "projection", "generator"), GENERATOR),
        ]

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W), "latent": (2, Z)}: a latent vector for each player's turn."""
        shape = (2, self.config.latent_size)
        uniform = self.config.latent == "uniform"
        latent = rng.uniform(-1, 1, shape) if uniform else rng.standard_normal(shape)
        return {**self.view(sample), "latent": latent.astype(np.float32)}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        if phase.name == R1:
            return self.penalty(batch)
        if phase.name == GENERATOR:
            on_encoded, on_generated = self.judge_pairs(batch, batch["latent"][:, 1])
            return Loss(discriminator_loss(on_generated, on_encoded, "non_saturating").sum())  # flipped
        on_encoded, on_generated = self.judge_pairs(batch, batch["latent"][:, 0], detached=True)
        right = {
            "encoded_accuracy": (on_encoded > 0).sum(),
            "generated_accuracy": (on_generated < 0).sum(),
        }
        return Loss(discriminator_loss(on_encoded, on_generated, "non_saturating").sum(), right)

    def judge_pairs(self, batch: Batch, latent: Tensor, detached: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (B,) of the pairs (x, E(x)) and (G(z), z), positive where they look like the first kind."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            encoded, generated = self.encode_latent(batch), self.roles["generator"](latent)
        judge = self.roles["discriminator"]
        return judge(to_unit_range(batch["image"]), encoded), judge(generated, latent)

    def encode_latent(self, batch: Batch) -> Tensor:
        """E(x): (B, Z), unbounded."""
        return self.encode(batch).pooled.float()

    def encode(self, batch: Batch) -> Encoded:
        """Pooled are the vectors E(x) (B, Z), by which the paper classifies."""
        tokens = self.roles["encoder"](batch)  # (B, N, D)
        return Encoded(tokens, self.roles["projection"](tokens))

    def penalty(self, batch: Batch) -> Loss:
        """R1: γ/2 · ‖∇ₓD(x, E(x))‖² at real images scaled to [−1, 1], times the steps that it stands for."""
        with torch.no_grad():
            encoded = self.encode_latent(batch)
        image = (to_unit_range(batch["image"]) * 2 - 1).requires_grad_()
        logits = self.roles["discriminator"]((image + 1) / 2, encoded)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        return Loss(gradient.pow(2).sum() * (self.config.r1_gamma / 2 * self.config.r1_every))

    def picture(self, batch: Batch) -> ImageGrid:
        """Images drawn again from what the encoder makes of them, the way from the first to the last, and forgeries."""
        latent, generator = self.encode_latent(batch), self.roles["generator"]
        return ImageGrid(
            {
                "original": to_unit_range(batch["image"]),
                "G(E(x))": generator(latent),
                "first to last": generator(interpolate(latent[0], latent[-1], len(latent))),
                "G(z)": generator(batch["latent"][:, 0]),
            }
        )


class Generator(nn.Module):
    """Latent vector → image in [0, 1]."""

    def __init__(self, config: BiGANConfig, channels: int, image_size: ImageSize) -> None:
        super().__init__()
        shape = (config.latent_size, channels, image_size, config.generator_width)
        self.decoder = (
            PerceptronDecoder(*shape, config.hidden_sizes, "relu")
            if config.networks == "mlp"
            else ConvolutionalDecoder(*shape)
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, W)."""
        return self.decoder(latent).float().sigmoid()


class PairDiscriminator(nn.Module):
    """An image and a latent vector → a logit: what the image comes to is laid beside the vector."""

    def __init__(self, config: BiGANConfig, channels: int, image_size: ImageSize) -> None:
        super().__init__()
        rows, columns = rows_and_columns(image_size)
        features = channels * rows * columns
        self.trunk: nn.Module = nn.Identity()
        if config.networks == "convolutional":
            width = config.discriminator_width
            stages = strided_convolutions((channels, width, 2 * width), "leaky_relu", normalize=True)
            self.trunk = nn.Sequential(*stages)
            features = 2 * width * (rows // 4) * (columns // 4)
        sizes = (features + config.latent_size, *config.hidden_sizes)
        activation = ACTIVATIONS["leaky_relu"]
        hidden = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), activation())]
        self.judge = nn.Sequential(*hidden, nn.Linear(sizes[-1], 1))

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], (B, Z) → (B,)."""
        features = self.trunk(image * 2 - 1).flatten(1)
        return self.judge(torch.cat([features, latent.to(features.dtype)], dim=1)).squeeze(1).float()
