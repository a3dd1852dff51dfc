"""Networks from a vector to an image: the decoders of autoencoders and the generators of GANs."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.ops.sizes import ImageSize, rows_and_columns

GROUPS = 8
"""Channels are normalised in groups, per sample: batch norm would tie a sample to the others of its rank."""


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
    """Two hidden layers and all pixels at once."""

    def __init__(self, latent_size: int, channels: int, image_size: ImageSize, width: int) -> None:
        super().__init__()
        self.shape = (channels, *rows_and_columns(image_size))
        self.layers = nn.Sequential(
            nn.Linear(latent_size, width),
            nn.GELU(),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, prod(self.shape)),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, W), unbounded."""
        return self.layers(latent).unflatten(1, self.shape)


DECODERS: dict[str, type[nn.Module]] = {"convolutional": ConvolutionalDecoder, "mlp": PerceptronDecoder}
