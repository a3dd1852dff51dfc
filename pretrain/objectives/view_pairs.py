"""What objectives on several views of an image share."""

from __future__ import annotations

from typing import Any

from data_tools.errors import UserError
from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.base import Batch
from pretrain.tracking.pictures import ImageGrid


def need_images(encoder: Any, method: str) -> None:
    """Raise a `UserError` where an encoder does not see images."""
    if not isinstance(encoder, ImageEncoder):
        raise UserError(
            f"encoder.name={encoder.config.name!r}: {method} compares views of images, so it needs an encoder of "
            "images: encoder.name=vit"
        )


def show_pairs(batch: Batch) -> ImageGrid:
    """The two views of each image above one another."""
    first, second = batch["views"].unbind(1)  # (B, C, S, S), (B, C, S, S)
    return ImageGrid({"one view": first, "another": second})
