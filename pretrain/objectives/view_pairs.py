"""What objectives on two views of an image have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pretrain.augment.views import Augmentation, Views
from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.base import Batch, Objective
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


class ViewPairs(Objective):
    """Makes two views of each image; what they are to each other is the objective's matter."""

    hides = "which two views are of one image"
    encoder: ImageEncoder
    augmentation: Augmentation
    needs: ClassVar[Mapping[str, str]] = {"images": "it compares views of images"}
    couples_samples = True

    def __init__(self, config: Any, encoder: Any, dataset: Dataset) -> None:
        """`config.views`: how both are made."""
        super().__init__(config, encoder, dataset)
        sizes = encoder.config
        self.augmentation = Augmentation(
            views=Views(config.views, sizes.image_size, sizes.num_channels, count=2)
        )

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """Two "views" (2, C, S, S), to be made."""
        return self.augmentation.draw(self.encoder.image_of(sample), rng)

    def picture(self, batch: Batch) -> ImageGrid:
        """The two views of each image above one another."""
        first, second = batch["views"].unbind(1)  # (B, C, S, S), (B, C, S, S)
        return ImageGrid({"one view": first, "another": second})
