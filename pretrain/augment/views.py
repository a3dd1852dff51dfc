"""Random views of images, the same on a CPU and on a GPU up to rounding.

What is random is drawn on the host as a few numbers for each view, by the sample's own generator. The work on pixels
follows from these numbers alone, so it may be done by the decoding workers or on the device, image by image or for
a whole batch: no image has a part in another one's views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.decode.pixels import ALPHA
from data_tools.decode.resize import resize
from data_tools.errors import UserError
from pretrain.augment.colour import jitter, needed, solarise, to_grey
from pretrain.augment.config import AugmentConfig, ViewConfig
from pretrain.augment.image import center_box, random_box
from pretrain.augment.resample import blur_taps, resample, resize_taps
from pretrain.ops.sizes import ImageSize, rows_and_columns

SOURCE, SOURCE_SIZE = "source", "source_size"
"""In an example or batch whose views are not made yet: the image (H, W, C); in a batch its height and width, too."""
DRAWN = ".drawn"
"""After a view's name: the numbers that were drawn for it."""
BLUR_WIDTH = 0.1
"""Of the blur's kernel, as a share of the view's size (SimCLR, arXiv:2002.05709, appendix A)."""


class Views:
    """Views of each image that are drawn alike."""

    def __init__(
        self,
        config: ViewConfig,
        size: ImageSize,
        channels: int,
        count: int | None = None,
        place: str = "views",
    ) -> None:
        """Views of `size`.

        Args:
            channels: of the images; the last of 2 or 4 is alpha, whose values are no colours.
            count: n views (B, n, C, S, T) of each image; None: a single one, (B, C, S, T).
            place: the objective's setting that names `config`, for errors.
        Raises:
            UserError: saturation or hue of what is not RGB.
        """
        self.config, self.count = config, count
        self.size = rows_and_columns(size)
        self.colours = channels - (channels in ALPHA)
        for name in ("saturation", "hue"):
            if config.jitter and getattr(config, name) and self.colours != 3:
                raise UserError(
                    f"objective.{place}.{name}={getattr(config, name)}: is of red, green and blue, and "
                    f"encoder.num_channels={channels}; set objective.{place}.{name}=0"
                )

    def draw(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """What is random in the views of an image: (n, 14), a row a view."""
        return np.array([self.draw_view(height, width, rng) for _ in range(self.count or 1)])

    def draw_view(self, height: int, width: int, rng: np.random.Generator) -> list[float]:
        """The crop's box in shares of the image, flip, four factors, their order, grey, sigma of the blur, solarise."""
        config = self.config
        if tuple(config.crop_scale) == (1, 1):
            left, top, right, bottom = center_box(height, width, self.size)
        else:
            left, top, right, bottom = random_box(
                height, width, rng, self.size, config.crop_scale, config.crop_ratio
            )
        box = [left / width, top / height, right / width, bottom / height]
        flip = happens(config.flip, rng)
        factors, order = [1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3]
        if happens(config.jitter, rng):
            strengths = (config.brightness, config.contrast, config.saturation)
            factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in strengths]
            factors.append(rng.uniform(-config.hue, config.hue))
            order = rng.permutation(4).tolist()
        grey = happens(config.grey, rng)
        sigma = rng.uniform(*config.blur_sigma) if happens(config.blur, rng) else 0.0
        return [*box, flip, *factors, *order, grey, sigma, happens(config.solarise, rng)]

    @torch.no_grad()
    def make(self, source: Tensor, drawn: Tensor, own_size: Tensor) -> Tensor:
        """Images (B, H, W, C), bytes or floats in [0, 1] → their views, floats in [0, 1].

        Args:
            drawn: (B, n, 14).
            own_size: (B, 2) height and width of each image without the padding at its end.
        """
        x, numbers = self.crop(source, drawn, own_size), drawn.flatten(0, 1)  # (B·n, C, S, T), (B·n, 14)
        if (
            x.device.type == "cpu"
        ):  # one after the other they stay in its caches, and take the steps they need only
            x = torch.cat([self.change(*view) for view in zip(x.split(1), numbers.split(1), strict=True)])
        else:
            x = self.change(x, numbers)
        return x.unflatten(0, drawn.shape[:2]) if self.count else x

    def change(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Crops (B, C, S, T) with their colours changed, blurred and solarised; numbers (B, 14)."""
        factors, order, grey, sigma, solarised = numbers[:, 5:].split([4, 4, 1, 1, 1], dim=1)
        x = self.on_colours(x, lambda x: to_grey(jitter(x, factors.to(x.dtype), order.long()), grey.bool()))
        x = self.blur(x, sigma)
        return self.on_colours(x, lambda x: solarise(x, solarised.bool()))

    def on_colours(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (B, C, S, T) with their colours changed, and alpha as it was."""
        if x.shape[1] == self.colours:
            return change(x)
        return torch.cat([change(x[:, : self.colours]), x[:, self.colours :]], dim=1)

    def crop(self, source: Tensor, drawn: Tensor, own_size: Tensor) -> Tensor:
        """Cut, resized and mirrored: (B, H, W, C) → (B·n, C, S, T)."""
        left, top, right, bottom, flip = drawn[..., :5].unbind(2)  # (B, n)
        own_height, own_width = own_size.to(drawn.dtype).split(1, dim=1)  # (B, 1)
        kernel, (height, width), upright = (
            self.config.interpolation,
            source.shape[1:3],
            torch.zeros_like(flip),
        )
        vertical = resize_taps(
            top * own_height, bottom * own_height, upright, own_height, self.size[0], kernel, height
        )
        horizontal = resize_taps(
            left * own_width, right * own_width, flip, own_width, self.size[1], kernel, width
        )
        x = resample(scale_to_unit(source), vertical.flatten(1, 2), horizontal.flatten(0, 1))
        return x.clamp_(0, 1)  # bicubic kernels overshoot at edges

    def blur(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, S, T), each image by its own sigma (B, 1) in pixels, 0 for none."""
        if not needed(sigma > 0):
            return x
        taps = [blur_taps(sigma, size, max(3, int(size * BLUR_WIDTH) | 1)) for size in self.size]
        return resample(x.permute(0, 2, 3, 1), *taps)


class Augmentation:
    """All views that an objective sees of an image, by name. Its `example` draws them, and `loss` finds them made."""

    def __init__(self, **views: Views) -> None:
        self.views = views

    def draw(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """What is random in the views of an image (H, W, C), and the image: for `example` to return."""
        height, width = image.shape[:2]
        drawn = {name + DRAWN: views.draw(height, width, rng) for name, views in self.views.items()}
        return {SOURCE: image / np.float32(65535) if image.dtype == np.uint16 else image, **drawn}

    def prepare(self, example: dict[str, Any], config: AugmentConfig) -> dict[str, Any]:
        """An example as it travels: with its views made, or with its image if they are made on the device."""
        if SOURCE not in example:
            return example
        if config.on == "device":
            return {**example, SOURCE: shrink(example[SOURCE], config.source_size)}
        names = [SOURCE, *(name + DRAWN for name in self.views)]
        alone = {name: torch.from_numpy(np.array(example[name]))[None] for name in names}
        alone[SOURCE_SIZE] = torch.tensor([example[SOURCE].shape[:2]])
        made = {name: views[0] for name, views in self.make(alone).items()}
        return {name: value for name, value in example.items() if name not in names} | made

    def pad(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Examples whose images, if they are not views yet, have one size and depth, and come with their own size."""
        if SOURCE not in examples[0]:
            return examples
        images = [example[SOURCE] for example in examples]
        if len({image.dtype for image in images}) > 1:
            images = [scale_to_unit(torch.from_numpy(np.array(image))).numpy() for image in images]
        height, width = np.max([image.shape[:2] for image in images], axis=0)
        padded = []
        for example, image in zip(examples, images, strict=True):
            room = np.zeros((height, width, image.shape[2]), dtype=image.dtype)
            room[: image.shape[0], : image.shape[1]] = image
            padded.append({**example, SOURCE: room, SOURCE_SIZE: np.array(image.shape[:2])})
        return padded

    def make(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with its views made; one that has them, as it is."""
        if SOURCE not in batch:
            return batch
        used = {SOURCE, SOURCE_SIZE, *(name + DRAWN for name in self.views)}
        made = {
            name: views.make(batch[SOURCE], batch[name + DRAWN], batch[SOURCE_SIZE])
            for name, views in self.views.items()
        }
        return {name: value for name, value in batch.items() if name not in used} | made


def happens(share: float, rng: np.random.Generator) -> bool:
    """Whether what happens to a share of views does. What never happens takes no number, so others stay the same."""
    return share > 0 and rng.random() < share


def scale_to_unit(image: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def shrink(image: np.ndarray, short: int | None) -> np.ndarray:
    """An image (H, W, C) with a shorter side of at most `short` pixels."""
    height, width = image.shape[:2]
    if short is None or min(height, width) <= short:
        return image
    sides = [round(side * short / min(height, width)) for side in (height, width)]
    return resize(image, *sides).permute(1, 2, 0).contiguous().numpy()
