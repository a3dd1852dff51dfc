"""Settings of augmentation: where it is done, and what a view of an image is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from pretrain.config.schema import Range, Share

Hue = Annotated[float, Field(ge=0, le=0.5)]


@dataclass(frozen=True)
class AugmentConfig:
    """Where images become the views that an objective sees. The views are the same up to rounding."""

    on: Literal["host", "device"] = "host"
    """`host`: by the decoding workers. `device`: whole images travel, and become views where the model is."""
    source_size: PositiveInt | None = None
    """With `device`, images whose shorter side is longer are brought to it before they travel, padded to the largest of
    the batch; None: as they are."""


@dataclass(frozen=True)
class ViewConfig:
    """A random view of an image: crop, flip, colour jitter, grey, blur, solarise, in this order.

    Colours stay as they are by default. An objective whose paper has others makes a subclass with other defaults, so
    that a recipe changes one setting and keeps the rest.
    """

    crop_scale: Range = (0.08, 1.0)
    """Area of the crop, as a share of the image; (1, 1) takes the centre."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Width by height of the crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip: Share = 0.5
    """Share of views that are mirrored; 0 for digits or text."""
    jitter: Share = 0.0
    """Share of views whose colours are changed by the next four, in random order (torchvision's ColorJitter)."""
    brightness: NonNegativeFloat = 0.4
    """The factor lies in [1 − this, 1 + this]; the same for the next two."""
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.4
    hue: Hue = 0.1
    """Largest turn of the colour circle to either side; half of it is the complementary colour."""
    grey: Share = 0.0
    """Share of views that lose their colours."""
    blur: Share = 0.0
    """Share of views that are blurred, by a Gaussian kernel of a tenth of the view's size (SimCLR)."""
    blur_sigma: Range = (0.1, 2.0)
    """Its standard deviation in pixels."""
    solarise: Share = 0.0
    """Share of views whose values from 0.5 on are inverted."""
