"""Generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661): hide nothing, forge everything.

The encoder is the discriminator's body: telling real images from forged ones teaches it what images are made of, and
those features are what is probed and released (DCGAN, Radford et al. 2015, arXiv:1511.06434).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import relu, softplus

from data_tools.errors import UserError
from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.autoencoder import to_unit_range
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.image_decoders import ConvolutionalDecoder
from pretrain.objectives.token_projection import TokenProjection
from pretrain.ops.ema import update_ema
from pretrain.ops.sizes import ImageSize
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

DISCRIMINATOR, R1, GENERATOR = "discriminator", "r1", "generator"


@dataclass(frozen=True)
class GANConfig:
    name: str = "gan"
    latent_size: PositiveInt = 64
    generator_width: PositiveInt = 64
    loss: Literal["non_saturating", "hinge", "minimax"] = "non_saturating"
    r1_gamma: NonNegativeFloat = 1.0
    """Weight of the gradient penalty on real images (Mescheder et al. 2018, arXiv:1801.04406); 0 leaves it out."""
    r1_every: PositiveInt = 16
    """Steps between penalties, each then this many times as strong (StyleGAN2's lazy regularisation)."""
    ema_decay: float = 0.995
    """Of the averaged generator, which draws the pictures."""


class GAN(Objective):
    """Two players, two optimizers: the discriminator's phase, its gradient penalty, the generator's phase."""

    Config = GANConfig
    hides = "which images are real"
    needs: ClassVar[Mapping[str, str]] = {"images": "a GAN's discriminator needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder

    def __init__(self, config: GANConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not 0 <= config.ema_decay < 1:
            raise UserError(f"objective.ema_decay={config.ema_decay}: must lie in [0, 1)")
        if encoder.couples_samples and config.r1_gamma:
            raise UserError(
                f"objective.r1_gamma={config.r1_gamma}: asks for the gradient of each image by itself, and batch norm "
                "mixes them; set objective.r1_gamma=0, or encoder.norm=frozen"
            )
        sizes = encoder.config
        self.roles["head"] = TokenProjection(encoder, 1)
        generator = Generator(config, sizes.num_channels, sizes.image_size)
        self.roles["generator"] = generator
        self.roles["generator_ema"] = copy.deepcopy(generator).requires_grad_(False)

    def phases(self) -> list[Phase]:
        discriminator = ("encoder", "head")
        penalty = [Phase(R1, discriminator, DISCRIMINATOR, every=self.config.r1_every, fp32=True)]
        return [
            Phase(DISCRIMINATOR, discriminator, DISCRIMINATOR),
            *(penalty if self.config.r1_gamma else []),
            Phase(GENERATOR, ("generator",), GENERATOR),
        ]

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W), "latent": (2, Z)}: a forgery's latent vector for each player's turn."""
        return {
            **self.view(sample),
            "latent": rng.standard_normal((2, self.config.latent_size), dtype=np.float32),
        }

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        if phase.name == R1:
            return self.penalty(batch)
        if phase.name == GENERATOR:
            forged = self.roles["generator"](batch["latent"][:, 1])
            return Loss(generator_loss(self.score_realness(forged), self.config.loss).sum())
        with torch.no_grad():
            forged = self.roles["generator"](batch["latent"][:, 0])
        on_real, on_forged = self.score_realness(to_unit_range(batch["image"])), self.score_realness(forged)
        right = {"real_accuracy": (on_real > 0).sum(), "forged_accuracy": (on_forged < 0).sum()}
        return Loss(discriminator_loss(on_real, on_forged, self.config.loss).sum(), right)

    def penalty(self, batch: Batch) -> Loss:
        """R1: γ/2 · ‖∇D‖² at real images scaled to [−1, 1], times the steps that it stands for."""
        image = (to_unit_range(batch["image"]) * 2 - 1).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            logits = self.score_realness((image + 1) / 2)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        return Loss(gradient.pow(2).sum() * (self.config.r1_gamma / 2 * self.config.r1_every))

    def score_realness(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits (B,), positive where they look real."""
        return self.roles["head"](self.roles["encoder"]({"image": image})).squeeze(1).float()

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Move the averaged generator."""
        if phase.name == GENERATOR:
            averaged, newest = self.roles["generator_ema"].parameters(), self.roles["generator"].parameters()
            update_ema(averaged, newest, self.config.ema_decay, step, skipped)

    def picture(self, batch: Batch) -> ImageGrid:
        """Real images above forgeries of the averaged generator."""
        forged = self.roles["generator_ema"](batch["latent"].flatten(0, 1))  # (2B, C, H, W)
        rows = forged.chunk(2)
        return ImageGrid({"real": to_unit_range(batch["image"]), "forged": rows[0], "forged too": rows[1]})


class Generator(nn.Module):
    """Latent vector → image in [0, 1]."""

    def __init__(self, config: GANConfig, channels: int, image_size: ImageSize) -> None:
        super().__init__()
        self.decoder = ConvolutionalDecoder(config.latent_size, channels, image_size, config.generator_width)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, W)."""
        return self.decoder(latent).float().sigmoid()


def discriminator_loss(on_real: Tensor, on_forged: Tensor, kind: str) -> Tensor:
    """Logits (B,), (B,) → losses (B,). Minimax and non-saturating differ in the generator's loss only."""
    if kind == "hinge":
        return relu(1 - on_real) + relu(1 + on_forged)
    return softplus(-on_real) + softplus(on_forged)


def generator_loss(on_forged: Tensor, kind: str) -> Tensor:
    """Logits (B,) → losses (B,)."""
    if kind == "hinge":
        return -on_forged
    return softplus(-on_forged) if kind == "non_saturating" else -softplus(on_forged)
