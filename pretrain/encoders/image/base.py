"""What every encoder of images shares: channels, sizes, and what its pixels are scaled to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data_tools.errors import UserError
from pretrain.encoders.base import Encoder, field
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset import Dataset


def image_to_array(image: np.ndarray, channels: int, place: str) -> np.ndarray:
    """An image (H, W, c) with the number of channels the encoder expects: grey is repeated, colour is averaged.

    Raises:
        UserError: neither is possible (e.g. 4 channels for an encoder of 3).
    """
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1:
        return image.repeat(channels, axis=2)
    if channels == 1 and image.shape[2] == 3:
        return image.mean(axis=2, keepdims=True).astype(image.dtype)
    raise UserError(
        f"{place}: an image of {image.shape[2]} channels for an encoder of {channels}; "
        f"set encoder.num_channels={image.shape[2]}"
    )


class ImageEncoder(Encoder):
    """An encoder of images: resizes, and normalises on the device what travels as bytes."""

    modality = "image"

    def __init__(self, config: Any, dataset: Dataset | None) -> None:
        super().__init__(config, dataset)
        for name in ("image_mean", "image_std"):
            values = getattr(config, name)
            if len(values) not in (1, config.num_channels):
                raise UserError(
                    f"encoder.{name}={list(values)}: needs 1 value, or {config.num_channels}: one a channel"
                )
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.image_mean: Tensor
        self.image_std: Tensor

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """{"image": (C, S, S)}: resized to the encoder's size, short side first, then the centre."""
        from pretrain.augment.image import center_view

        image = image_to_array(field(sample, "image"), self.config.num_channels, sample["__key__"])
        return {"image": center_view(image, self.config.image_size)}

    def pixels(self, image: Tensor) -> Tensor:
        """Bytes (or floats in [0, 1]) (B, C, H, W) → what the model takes: zero mean and unit variance."""
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        return (x - self.image_mean) / self.image_std

    def raw_features(self, batch: dict[str, Any]) -> Tensor:
        """All pixels."""
        return self.pixels(batch["image"]).flatten(1)

    def draw(self, rows: dict[str, Tensor]) -> ImageGrid:
        """By title, images (B, C, H, W) in [0, 1]."""
        return ImageGrid(rows)

    def displayable(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`: floats in [0, 1] for the eye."""
        return (pixels * self.image_std + self.image_mean).clamp(0, 1)
