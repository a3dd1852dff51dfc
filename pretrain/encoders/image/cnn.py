"""Strided convolutions, as generative models of 2015–2017 have them: DCGAN's, the context encoder's, the VQ-VAE's.

`transformers` has no such model, so it trains and can be probed, but it cannot be released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import relu

from data_tools.errors import UserError
from pretrain.encoders.image.base import Background, ImageEncoder, ValueRange
from pretrain.encoders.image.hiding import hide_pixels
from pretrain.encoders.image.mlp import ACTIVATIONS

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

GROUPS = 8
"""Channels are normalised in groups, per sample: batch norm would tie a sample to the others of its rank."""


@dataclass(frozen=True)
class CNNEncoderConfig:
    name: str = "cnn"
    image_size: PositiveInt = 28
    num_channels: PositiveInt = 1
    hidden_sizes: tuple[PositiveInt, ...] = (64, 128)
    """Channels; each convolution halves the resolution."""
    residual_blocks: NonNegativeInt = 0
    """After them, at the last resolution."""
    hidden_act: Literal["gelu", "relu", "leaky_relu"] = "leaky_relu"
    normalize: bool = True
    """A norm over groups of channels after each convolution but the first."""
    image_mean: tuple[float, ...] = (0.5,)
    image_std: tuple[PositiveFloat, ...] = (0.5,)
    background: Background = "white"
    value_range: ValueRange | None = None


class CNNEncoder(ImageEncoder):
    """The last feature map as tokens, row by row."""

    Config = CNNEncoderConfig
    gives = frozenset({"images", "masked"})
    lacks: ClassVar[Mapping[str, str]] = {"dropped": "a convolution needs all its neighbours"}

    def __init__(self, config: CNNEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        self.grid = config.image_size >> len(config.hidden_sizes)
        if self.grid < 1:
            raise UserError(
                f"encoder.image_size={config.image_size}: too small to be halved {len(config.hidden_sizes)} times"
            )
        if config.normalize and any(size % GROUPS for size in config.hidden_sizes[1:]):
            raise UserError(
                f"encoder.hidden_sizes={list(config.hidden_sizes)}: must be multiples of {GROUPS} where "
                "encoder.normalize is on"
            )
        self.dim = config.hidden_sizes[-1]
        self.num_patches = self.grid**2
        self.token_grid = (self.grid, self.grid)
        self.mask_token_size = config.num_channels
        stages = strided_convolutions(
            (config.num_channels, *config.hidden_sizes), config.hidden_act, config.normalize
        )
        residual = [ResidualBlock(self.dim) for _ in range(config.residual_blocks)]
        self.model = nn.Sequential(*stages, *residual)

    def forward(
        self,
        batch: dict[str, Any],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """`image` (B, C, H, W), bytes or floats in [0, 1] → tokens (B, N, D) of the last feature map; hidden places
        have the colour `mask_token`."""
        pixels = hide_pixels(self.pixels(batch["image"]), mask, mask_token)
        x = self.model(pixels)  # (B, D, h, w)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.children())


def strided_convolutions(channels: tuple[int, ...], activation: str, normalize: bool) -> list[nn.Module]:
    """A 4×4 convolution for each step of `channels`, which halves the resolution; the first has no norm (DCGAN)."""
    stages: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(channels)):
        norm = [nn.GroupNorm(GROUPS, m)] if normalize and i else []
        convolution = nn.Conv2d(n, m, kernel_size=4, stride=2, padding=1)
        stages.append(nn.Sequential(convolution, *norm, ACTIVATIONS[activation]()))
    return stages


class ResidualBlock(nn.Module):
    """x + a 3×3 and a 1×1 convolution, each after a ReLU (van den Oord et al. 2017, section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.pointwise = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x + self.pointwise(relu(self.spatial(relu(x))))
