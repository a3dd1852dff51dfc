"""Random views of images, the same on a CPU and on a GPU up to rounding.

What is random is drawn on the host as a few numbers for each view, by the sample's own generator. The work on pixels
follows from these numbers alone, so it may be done by the decoding workers or on the device, image by image or for
a whole batch: no image has a part in another one's views.
"""

from __future__ import annotations

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
from pretrain.augment.resample import Taps, blur_taps, resample, resize_taps

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
        size: int | tuple[int, int],
        channels: int,
        count: int | None = None,
        place: str = "views",
    ) -> None:
        """Views of `size` pixels (height, width).

        Args:
            channels: of the images; the last of 2 or 4 is alpha, whose values are no colours.
            count: n views (B, n, C, S, T) of each image; None: a single one, (B, C, S, T).
            place: the objective's setting that names `config`, for errors.
        Raises:
            UserError: saturation or hue of what is not RGB.
        """
        self.config, self.count = config, count
        self.size = (size, size) if isinstance(size, int) else size
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
        flip = rng.random() < config.flip
        factors, order = [1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3]
        if rng.random() < config.jitter:
            strengths = (config.brightness, config.contrast, config.saturation)
            factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in strengths]
            factors.append(rng.uniform(-config.hue, config.hue))
            order = rng.permutation(4).tolist()
        grey = rng.random() < config.grey
        sigma = rng.uniform(*config.blur_sigma) if rng.random() < config.blur else 0.0
        return [*box, flip, *factors, *order, grey, sigma, rng.random() < config.solarise]

    @torch.no_grad()
    def make(self, source: Tensor, drawn: Tensor, own_size: Tensor) -> Tensor:
        """Images (B, H, W, C), bytes or floats in [0, 1] → their views, floats in [0, 1].

        On a CPU one image after the other, whose views fit into its caches and go through what they need only.

        Args:
            drawn: (B, n, 14).
            own_size: (B, 2) height and width of each image without the padding at its end.
        """
        if source.device.type == "cpu":
            parts = zip(source.split(1), drawn.split(1), own_size.split(1), strict=True)
            views = torch.cat([self.make_together(*part) for part in parts])
        else:
            views = self.make_together(source, drawn, own_size)
        return views if self.count else views[:, 0]

    def make_together(self, source: Tensor, drawn: Tensor, own_size: Tensor) -> Tensor:
        """The same for the whole batch at once: (B, n, C, S, T)."""
        x = scale_to_unit(source)
        vertical, horizontal = self.crop_taps(drawn, own_size, *x.shape[1:3])
        x = resample(x, vertical.flatten(1, 2), horizontal.flatten(0, 1)).clamp(0, 1)  # (B·n, C, S, T)
        factors, order, grey, sigma, solarised = drawn.flatten(0, 1)[:, 5:].split([4, 4, 1, 1, 1], dim=1)
        x, alpha = x[:, : self.colours], x[:, self.colours :]
        x = jitter(x, factors.to(x.dtype), order.long())
        x = to_grey(x, grey.bool())
        x = self.blur(torch.cat([x, alpha], dim=1), sigma)
        x, alpha = x[:, : self.colours], x[:, self.colours :]
        x = torch.cat([solarise(x, solarised.bool()), alpha], dim=1)
        return x.unflatten(0, drawn.shape[:2])

    def crop_taps(self, drawn: Tensor, own_size: Tensor, height: int, width: int) -> tuple[Taps, Taps]:
        """Vertical and horizontal ones of each view, (B, n, size, K), of images padded to `height` and `width`."""
        left, top, right, bottom, flip = drawn[..., :5].unbind(2)  # (B, n)
        own_height, own_width = own_size.to(drawn.dtype).split(1, dim=1)  # (B, 1)
        kernel, upright = self.config.interpolation, torch.zeros_like(flip)
        return (
            resize_taps(top * own_height, bottom * own_height, upright, own_height, self.size[0], kernel, height),
            resize_taps(left * own_width, right * own_width, flip, own_width, self.size[1], kernel, width),
        )  # fmt: skip

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
        return {SOURCE: image, **drawn}

    def prepare(self, example: dict[str, Any], config: AugmentConfig) -> dict[str, Any]:
        """An example as it travels: with its views made, or with its image if they are made on the device."""
        if SOURCE not in example:
            return example
        example = {**example, SOURCE: shrink(example[SOURCE], config.source_size)}
        if config.on == "device":
            return example
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


def scale_to_unit(image: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def shrink(image: np.ndarray, short: int | None) -> np.ndarray:
    """An image (H, W, C) with a shorter side of at most `short` pixels; of bytes or floats in [0, 1]."""
    if image.dtype == np.uint16:
        image = image.astype(np.float32) / 65535
    height, width = image.shape[:2]
    if short is None or min(height, width) <= short:
        return image
    sides = [round(side * short / min(height, width)) for side in (height, width)]
    return resize(image, *sides).permute(1, 2, 0).contiguous().numpy()
