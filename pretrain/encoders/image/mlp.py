"""A multilayer perceptron on whole images: the smallest encoder, for autoencoders as they were first described.

`transformers` has no such model, so it trains and can be probed, but it cannot be released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from pretrain.encoders.image.base import Background, ImageEncoder, ValueRange
from pretrain.encoders.image.hiding import hide_pixels
from pretrain.encoders.image.vit_like import xavier_uniform
from pretrain.ops.sizes import ImageSize

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
}


@dataclass(frozen=True)
class MLPEncoderConfig:
    name: str = "mlp"
    image_size: ImageSize = 28
    num_channels: PositiveInt = 1
    hidden_sizes: tuple[PositiveInt, ...] = (512, 256)
    """Widths of the layers; the last is the width of the representation."""
    hidden_act: Literal["gelu", "relu", "leaky_relu"] = "gelu"
    """`leaky_relu` has the slope 0.2, as in DCGAN."""
    image_mean: tuple[float, ...] = (0.5,)
    image_std: tuple[PositiveFloat, ...] = (0.5,)
    background: Background = "white"
    value_range: ValueRange | None = None


class MLPEncoder(ImageEncoder):
    """All pixels → one token."""

    Config = MLPEncoderConfig
    gives = frozenset({"images", "masked"})
    lacks: ClassVar[Mapping[str, str]] = {"dropped": "a perceptron takes all pixels"}

    def __init__(self, config: MLPEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        sizes = (config.num_channels * prod(self.sizes), *config.hidden_sizes)
        activation = ACTIVATIONS[config.hidden_act]
        layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), activation())]
        self.model = nn.Sequential(*layers)
        self.model.apply(xavier_uniform)
        self.dim = config.hidden_sizes[-1]
        self.num_patches = 1
        self.token_grid = (1, 1)
        self.mask_token_size = config.num_channels

    def forward(
        self,
        batch: dict[str, Any],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """`image` (B, C, H, W), bytes or floats in [0, 1] → (B, 1, D); hidden places have the colour `mask_token`."""
        pixels = hide_pixels(self.pixels(batch["image"]), mask, mask_token)
        return self.model(pixels.flatten(1)).unsqueeze(1)

    def blocks(self) -> list[nn.Module]:
        return [layer for layer in self.model.children() if isinstance(layer, nn.Linear)]
