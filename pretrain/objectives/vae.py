"""Variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114): images as clouds in a space of unit scale.

The encoder says where one lies and how wide it is, the decoder draws the image from a random point of it. Weighing
the clouds' distance from N(0, 1) by β makes it the β-VAE (Higgins et al. 2017); letting β rise at first keeps latents
in use (Bowman et al. 2016, arXiv:1511.06349).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.config.schema import Share
from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.autoencoder import to_unit_range
from pretrain.objectives.base import Batch, Encoded, Loss, Objective, Phase
from pretrain.objectives.image_decoders import ConvolutionalDecoder, PerceptronDecoder
from pretrain.objectives.token_projection import TokenProjection
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class VAEConfig:
    name: str = "vae"
    latent_size: PositiveInt = 32
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Of a pixel in [0, 1] given the latent point: its value is a probability, or has a normal error."""
    deviation: PositiveFloat = 0.1
    """Standard deviation of that error; of `gaussian` alone."""
    beta: NonNegativeFloat = 1.0
    """Weight of the KL divergence."""
    beta_warmup: Share = 0.0
    """Share of the run during which the weight rises from 0."""
    decoder: Literal["convolutional", "mlp"] = "convolutional"
    decoder_width: PositiveInt = 64
    decoder_hidden_sizes: tuple[PositiveInt, ...] | None = None
    """Of `decoder: mlp`, in place of two layers of `decoder_width` and twice that."""
    decoder_hidden_act: Literal["gelu", "relu"] = "gelu"
    """Of `decoder: mlp`."""


class VAE(Objective):
    """−log p(x|z) summed over pixels + β·KL(q(z|x) ‖ N(0, 1)) summed over latents, averaged over images: in nats."""

    Config = VAEConfig
    hides = "all but a random point near a narrow vector"
    needs: ClassVar[Mapping[str, str]] = {"images": "a variational autoencoder needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder
    beta = 0.0
    """The weight of the KL divergence in this step; see `begin_step`."""

    def __init__(self, config: VAEConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles["posterior"] = TokenProjection(encoder, 2 * config.latent_size)
        self.roles["decoder"] = build_decoder(config, encoder)

    def begin_step(self, step: int, total_steps: int) -> None:
        rising = self.config.beta_warmup * total_steps
        self.beta = self.config.beta * (min(1.0, step / rising) if rising else 1.0)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W), "noise": (Z,)}: the noise picks the point of the image's cloud."""
        return {**self.view(sample), "noise": rng.standard_normal(self.config.latent_size, dtype=np.float32)}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        mean, log_variance = self.posterior(batch)  # (B, Z), (B, Z)
        latent = mean + (log_variance / 2).exp() * batch["noise"]  # (B, Z)
        drawing = self.roles["decoder"](latent).float()  # (B, C, H, W)
        reconstruction = self.negative_log_likelihood(drawing, to_unit_range(batch["image"])).sum()
        kl = kl_from_standard_normal(mean, log_variance).sum()
        return Loss(
            reconstruction + self.beta * kl, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        )

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, Z) of each image's cloud, in fp32."""
        mean, log_variance = self.roles["posterior"](self.roles["encoder"](batch)).float().chunk(2, dim=1)
        return mean, log_variance

    def negative_log_likelihood(self, drawing: Tensor, image: Tensor) -> Tensor:
        """−log p of each pixel (B, C, H, W); the drawing is logits of `bernoulli`, means of `gaussian`."""
        if self.config.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(drawing, image, reduction="none")
        deviation = self.config.deviation
        return ((drawing - image) / deviation).pow(2) / 2 + math.log(deviation * math.sqrt(2 * math.pi))

    def encode(self, batch: Batch) -> Encoded:
        """Pooled are the clouds' means (B, Z): what the encoder knows, without the noise."""
        tokens = self.roles["encoder"](batch)  # (B, N, D)
        mean, _ = self.roles["posterior"](tokens).chunk(2, dim=1)
        return Encoded(tokens, mean)

    def draw(self, latent: Tensor) -> Tensor:
        """Latent points (B, Z) as images (B, C, H, W) in [0, 1]."""
        drawing = self.roles["decoder"](latent).float()
        return drawing.sigmoid() if self.config.likelihood == "bernoulli" else drawing.clamp(0, 1)

    def reconstruct(self, batch: Batch) -> Tensor:
        """Images drawn again from their means: (B, C, H, W) in [0, 1]."""
        return self.draw(self.posterior(batch)[0])

    def picture(self, batch: Batch) -> ImageGrid:
        """Reconstructions, the way from the first image's mean to the last one's, and what random points look like."""
        mean, _ = self.posterior(batch)
        return ImageGrid(
            {
                "original": to_unit_range(batch["image"]),
                "reconstruction": self.draw(mean),
                "first to last": self.draw(interpolate(mean[0], mean[-1], len(mean))),
                "sampled": self.draw(batch["noise"]),
            }
        )


def build_decoder(config: VAEConfig, encoder: ImageEncoder) -> nn.Module:
    """Latent points → images of the encoder's size."""
    sizes = encoder.config
    shape = (config.latent_size, sizes.num_channels, sizes.image_size, config.decoder_width)
    if config.decoder == "mlp":
        return PerceptronDecoder(*shape, config.decoder_hidden_sizes, config.decoder_hidden_act)
    if config.decoder_hidden_sizes is not None:
        raise UserError(
            f"objective.decoder_hidden_sizes={list(config.decoder_hidden_sizes)}: is for objective.decoder=mlp; a "
            "convolutional decoder has objective.decoder_width"
        )
    return ConvolutionalDecoder(*shape)


def kl_from_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = −½ (1 + log σ² − μ² − σ²), each number by itself."""
    return -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp())


def interpolate(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Points on the straight line between two latent points (Z,), ends included: (steps, Z)."""
    share = torch.linspace(0, 1, steps, device=first.device).unsqueeze(1)  # (steps, 1)
    return first.lerp(last, share.to(first.dtype))
