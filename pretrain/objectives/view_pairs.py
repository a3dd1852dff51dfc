"""What objectives on two views of an image show."""

from __future__ import annotations

from pretrain.objectives.base import Batch
from pretrain.tracking.pictures import ImageGrid


def show_pairs(batch: Batch) -> ImageGrid:
    """The two views of each image above one another."""
    first, second = batch["views"].unbind(1)  # (B, C, S, S), (B, C, S, S)
    return ImageGrid({"one view": first, "another": second})
