"""What every encoder of images shares: channels, sizes, and what its pixels are scaled to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError
from torch import Tensor

from data_tools.decode.pixels import ALPHA, Colour, lay_on, opaque
from data_tools.errors import UserError
from pretrain.encoders.base import Encoder, PretrainedConfig, field
from pretrain.encoders.hf_model import pooler_option
from pretrain.encoders.image.card import MODES, NOTES, image_code
from pretrain.encoders.image.processor import open_image_processor
from pretrain.ops.sizes import ImageSize, rows_and_columns
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

ONE_GREY_LEVEL = 1.01 / 255
"""The stock processor rounds bytes after resizing, and so do we; the two may round one level apart."""


def refuse_flat(values: tuple[float, float]) -> tuple[float, float]:
    """Raise for a range that does not rise."""
    if not values[0] < values[1]:
        raise PydanticCustomError("flat", "must rise: [black, white]")
    return values


Byte = Annotated[int, Field(ge=0, le=255)]
Background = Literal["white", "black"] | tuple[Byte, Byte, Byte]
ValueRange = Annotated[tuple[float, float], AfterValidator(refuse_flat)]


def image_to_array(
    image: np.ndarray,
    channels: int,
    place: str,
    background: Colour = "white",
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """An image (H, W, c) as (H, W, channels): bytes, 16 bits, or float32 in [0, 1].

    What is transparent is laid on the background, unless the encoder has a channel for it (2: grey and alpha; 4: RGBA),
    which in other images is opaque. Grey is repeated, colour is averaged.

    Raises:
        UserError: neither is possible, or 32 bits or floats do not say what is white.
    """
    if image.dtype not in (np.uint8, np.uint16):
        image = scale_values(image, place, value_range)
    if image.shape[2] == channels:
        return image
    if channels not in ALPHA:
        image = lay_on(image, background)
    elif image.shape[2] not in ALPHA:
        image = opaque(image)
    colours, wanted = (count - (count in ALPHA) for count in (image.shape[2], channels))
    colour, alpha = image[..., :colours], image[..., colours:]
    if colours == wanted:
        return image
    if colours == 1:
        colour = colour.repeat(wanted, axis=2)
    elif wanted == 1:
        colour = colour.mean(axis=2, keepdims=True).astype(image.dtype)
    else:
        raise UserError(
            f"{place}: an image of {image.shape[2]} channels for an encoder of {channels}; "
            f"set encoder.num_channels={image.shape[2]}"
        )
    return np.concatenate([colour, alpha], axis=2) if alpha.shape[2] else colour


def scale_values(image: np.ndarray, place: str, value_range: tuple[float, float] | None) -> np.ndarray:
    """An image of 32-bit integers or floats as float32 in [0, 1], no value (NaN) as 0.

    Raises:
        UserError: no range is set, and the values are not in [0, 1] already.
    """
    if value_range is None:
        low, high = image.min(), image.max()
        if image.dtype.kind == "f" and low >= 0 and high <= 1:
            return image.astype(np.float32)
        raise UserError(
            f"{place}: an image of {image.dtype} from {low:g} to {high:g}, which does not say what is white; set "
            f"encoder.value_range, e.g. [0, {max(float(high), 1):g}]"
        )
    low, high = value_range
    return np.nan_to_num(((image - low) / (high - low)).clip(0, 1)).astype(np.float32)


@dataclass(frozen=True)
class ImageEncoderConfig(PretrainedConfig):
    """What families of images have; the scale of pixels is ImageNet's unless set."""

    image_size: ImageSize = 224
    """Of a square view; [rows, columns] of another."""
    num_channels: PositiveInt = 3
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)
    background: Background = "white"
    """What lies behind transparent pixels; unused where num_channels is 2 or 4, for alpha is then a channel."""
    value_range: ValueRange | None = None
    """Values of 32-bit and float images that are black and white; None: floats from 0 to 1. (8 and 16 bits need none.)
    """


def scale_bytes(image: np.ndarray) -> np.ndarray:
    """Bytes as float32 with white at 1, as `ImageEncoder.pixels` has them; floats as they are."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


class ImageEncoder(Encoder):
    """An encoder of images: resizes, and normalises on the device what travels as bytes."""

    modality = "image"
    gives = frozenset({"images"})
    pipeline = "image-feature-extraction"
    card_notes = NOTES
    token_grid: tuple[int, int]
    """Rows and columns of the last tokens that `forward` returns; others (a class token) come before them."""
    mask_token_size: int = 0
    """Numbers in what stands for a hidden place: a colour (C), or a token of the width of embedded patches. 0: its
    `forward` hides nothing. Others take `mask` (B, h, w), see `hiding.py`, and `mask_token` (mask_token_size,), or None
    for places that have the mean colour."""

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

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of a `view`, in pixels."""
        return rows_and_columns(self.config.image_size)

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """{"image": (C, H, W)}: resized to the encoder's size, short side first, then the centre.

        One that is not square has all of the image, whatever its aspect.
        """
        from pretrain.augment.image import center_view

        return {"image": center_view(self.image_of(sample), self.sizes)}

    def random_view(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"image": (C, S, S)}: a crop of a random place and size, not mirrored."""
        from pretrain.augment.image import random_resized_crop

        return {"image": random_resized_crop(self.image_of(sample), rng, self.config.image_size)}

    def image_of(self, sample: dict[str, Any]) -> np.ndarray:
        """A sample's image (H, W, num_channels), see `image_to_array`; an encoder of your own may lack its settings."""
        background: Colour = getattr(self.config, "background", "white")
        value_range = getattr(self.config, "value_range", None)
        channels = self.config.num_channels
        return image_to_array(field(sample, "image"), channels, sample["__key__"], background, value_range)

    @classmethod
    def collate(cls, views: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Bytes stay bytes where all images are; beside one that was deeper, each is scaled by its own depth."""
        if len({view["image"].dtype for view in views if "image" in view}) > 1:
            views = [{**view, "image": scale_bytes(view["image"])} for view in views]
        return super().collate(views)

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

    def pooling_code(self) -> str:
        """`pool` as an expression of what `transformers` calls `last_hidden_state`."""
        raise TypeError(f"{type(self).__name__} must define pooling_code()")

    def card_code(self) -> str:
        options = pooler_option(type(self.model))
        return image_code(self.pooling_code(), self.config.num_channels, self.sizes, options)

    def plain_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels(batch["image"])}

    def check_processor(self, folder: Path, samples: list[dict[str, Any]]) -> None:
        """Pixels from `AutoImageProcessor` must be those that training saw, up to one grey level where it resizes.

        Pictures that are deeper or converted, or have more channels than Pillow knows, are prepared by their users; the
        model card says how.
        """
        images = [sample["image"] for sample in samples]
        if self.config.num_channels not in MODES or any(
            i.dtype != np.uint8 or i.shape[2] != self.config.num_channels for i in images
        ):
            return
        stock = open_image_processor(folder)(images, return_tensors="pt", input_data_format="channels_last")[
            "pixel_values"
        ]
        ours = self.pixels(torch.stack([torch.as_tensor(self.view(sample)["image"]) for sample in samples]))
        difference = (self.displayable(stock) - self.displayable(ours)).abs().max().item()
        if not difference <= ONE_GREY_LEVEL:
            raise UserError(
                f"{folder}: its image processor gives pixels that differ from training's by {difference * 255:.1f} "
                "grey levels; the release is not written, please report this"
            )

    def displayable(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`: floats in [0, 1] for the eye."""
        return (pixels * self.image_std + self.image_mean).clamp(0, 1)
