"""Networks from a vector to an image: the decoders of autoencoders and the generators of GANs."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.image.cnn import GROUPS, ResidualBlock
from pretrain.encoders.image.mlp import ACTIVATIONS
from pretrain.ops.sizes import ImageSize, rows_and_columns


class ConvolutionalDecoder(nn.Module):
    """A small feature map from the vector, doubled twice by transposed convolutions (DCGAN's generator)."""

    def __init__(self, latent_size: int, channels: int, image_size: ImageSize, width: int) -> None:
        super().__init__()
        rows, columns = rows_and_columns(image_size)
        if rows % 4 or columns % 4:
            raise UserError(f"encoder.image_size={image_size}: a convolutional decoder needs a multiple of 4")
        if width % GROUPS:
            raise UserError(f"decoder width {width}: must be a multiple of {GROUPS}")
        self.start = (2 * width, rows // 4, columns // 4)
        self.project = nn.Linear(latent_size, prod(self.start))
        self.layers = nn.Sequential(
            nn.GroupNorm(GROUPS, 2 * width),
            nn.GELU(),
            nn.ConvTranspose2d(2 * width, width, kernel_size=4, stride=2, padding=1),  # (B, w, H/2, W/2)
            nn.GroupNorm(GROUPS, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1),  # (B, w, H, W)
            nn.GELU(),
            nn.Conv2d(width, channels, kernel_size=3, padding=1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, W), unbounded."""
        return self.layers(self.project(latent).unflatten(1, self.start))


class PerceptronDecoder(nn.Module):
    """Hidden layers, by default two (`width` and twice that), and all pixels at once."""

    def __init__(
        self,
        latent_size: int,
        channels: int,
        image_size: ImageSize,
        width: int,
        hidden_sizes: tuple[int, ...] | None = None,
        hidden_act: str = "gelu",
    ) -> None:
        super().__init__()
        self.shape = (channels, *rows_and_columns(image_size))
        sizes = (latent_size, *(hidden_sizes or (width, 2 * width)))
        hidden = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), ACTIVATIONS[hidden_act]())]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], prod(self.shape)))

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, W), unbounded."""
        return self.layers(latent).unflatten(1, self.shape)


class MapDecoder(nn.Module):
    """A feature map → an image, each side doubled as often as it takes by transposed convolutions."""

    def __init__(
        self,
        inputs: int | None,
        widths: tuple[int, ...],
        channels: int,
        residual_blocks: int = 0,
        norm: bool = False,
    ) -> None:
        """
        Args:
            inputs: channels of the map, which a 3×3 convolution brings to `widths[0]`; None: it has so many.
            widths: channels at each resolution below the image's.
            norm: normalise in groups of channels, per sample, at each of them.
        """
        super().__init__()
        layers: list[nn.Module] = []
        layers += [] if inputs is None else [nn.Conv2d(inputs, widths[0], kernel_size=3, padding=1)]
        layers += [ResidualBlock(widths[0]) for _ in range(residual_blocks)]
        for n, m in pairwise((*widths, channels)):
            layers += [nn.GroupNorm(GROUPS, n)] if norm else []
            layers += [nn.ReLU(), nn.ConvTranspose2d(n, m, kernel_size=4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, C, h · 2^n, w · 2^n), unbounded."""
        return self.layers(features)


DECODERS: dict[str, type[nn.Module]] = {"convolutional": ConvolutionalDecoder, "mlp": PerceptronDecoder}
