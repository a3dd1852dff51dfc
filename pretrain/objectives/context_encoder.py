"""Context encoder (Pathak et al. 2016, arXiv:1604.07379): a block of the image is painted out, and painted in again.

The squared error alone paints the mean of all that could stand there; a discriminator that sees nothing but the block
asks for one thing of these. A band at the block's border stays visible and weighs more, so that the painting fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.augment.image import center_view, random_resized_crop
from pretrain.config.schema import Range, Share
from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.image.cnn import strided_convolutions
from pretrain.objectives.autoencoder import to_unit_range
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.gan import discriminator_loss, generator_loss
from pretrain.objectives.image_decoders import MapDecoder
from pretrain.objectives.token_projection import TokenProjection
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

DISCRIMINATOR, GENERATOR = "discriminator", "generator"


@dataclass(frozen=True)
class ContextEncoderConfig:
    """Defaults of the authors' code (train.lua), for images of 128 pixels."""

    name: str = "context_encoder"
    hole_size: PositiveInt = 64
    """Pixels that the block is wide."""
    hole: Literal["center", "random"] = "center"
    """Where it is."""
    overlap: NonNegativeInt = 4
    """Width of the band along its border, in pixels, that is painted although it stays visible."""
    overlap_weight: PositiveFloat = 10.0
    """Of the squared error there."""
    adversarial_weight: Share = 0.001
    """Of the discriminator's verdict; the squared error has the rest. 0: no discriminator."""
    bottleneck_size: PositiveInt = 4000
    width: PositiveInt = 64
    """Channels of the painting at half its resolution, doubled at each coarser one; the discriminator's likewise."""
    crop_scale: Range = (0.2, 1.0)
    """Area of the random crop; (1, 1) takes the whole image."""
    flip: bool = True
    """Mirror half of the images; not for digits or text."""


class ContextEncoder(Objective):
    """(1 − λ)·mean w‖x − x̂‖² + λ·softplus(−D(x̂)) over the block, on pixels in [−1, 1]; D as in a GAN."""

    Config = ContextEncoderConfig
    hides = "a block of the image"
    needs: ClassVar[Mapping[str, str]] = {"images": "a context encoder needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder

    def __init__(self, config: ContextEncoderConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        check_hole(config, encoder)
        self.roles["bottleneck"] = TokenProjection(encoder, config.bottleneck_size)
        self.roles["painter"] = BlockPainter(config, encoder.config.num_channels)
        if config.adversarial_weight:
            self.roles["discriminator"] = BlockDiscriminator(config, encoder.config.num_channels)

    def phases(self) -> list[Phase]:
        judging = [Phase(DISCRIMINATOR, ("discriminator",), DISCRIMINATOR)]
        painting = Phase(GENERATOR, ("encoder", "bottleneck", "painter"), GENERATOR)
        return [*(judging if self.config.adversarial_weight else []), painting]

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, *sizes) with the hole, "target": (C, H, H) the block, "corner": (2,) where it begins}."""
        config, sizes = self.config, self.encoder.sizes
        image = self.encoder.image_of(sample)
        whole = tuple(config.crop_scale) == (1, 1)
        view = (
            center_view(image, sizes) if whole else random_resized_crop(image, rng, sizes, config.crop_scale)
        )
        if config.flip and rng.random() < 0.5:
            view = view[:, :, ::-1]
        room = np.array(sizes) - config.hole_size
        corner = rng.integers(room + 1) if config.hole == "random" else room // 2
        target = block_of(view, corner, config.hole_size).copy()
        painted = view.copy()
        inner = block_of(painted, corner + config.overlap, config.hole_size - 2 * config.overlap)
        inner[:] = self.paint_of(view.dtype)
        return {"image": painted, "target": target, "corner": corner.astype(np.int64)}

    def paint_of(self, dtype: np.dtype[Any]) -> np.ndarray:
        """What the hole is filled with: the mean of the data's pixels, (C or 1, 1, 1)."""
        mean = np.array(self.encoder.config.image_mean, dtype=np.float32).reshape(-1, 1, 1)
        return (mean * 255).round().astype(np.uint8) if dtype == np.uint8 else mean

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        target = to_unit_range(batch["target"])  # (B, C, H, H)
        if phase.name == DISCRIMINATOR:
            with torch.no_grad():
                painting = self.paint(batch)
            on_real, on_painted = self.judge(target), self.judge(painting)
            right = {"real_accuracy": (on_real > 0).sum(), "painted_accuracy": (on_painted < 0).sum()}
            return Loss(discriminator_loss(on_real, on_painted, "non_saturating").sum(), right)
        painting, weight = self.paint(batch), self.config.adversarial_weight
        error = (2 * (painting - target)).pow(2) * self.weigh_pixels(painting)
        reconstruction = error.flatten(1).mean(1).sum()
        if not weight:
            return Loss(reconstruction)
        adversarial = generator_loss(self.judge(painting), "non_saturating").sum()
        return Loss(
            (1 - weight) * reconstruction + weight * adversarial,
            {"reconstruction": reconstruction.detach(), "adversarial": adversarial.detach()},
        )

    def paint(self, batch: Batch) -> Tensor:
        """The block (B, C, H, H) in [0, 1]."""
        tokens = self.roles["encoder"]({"image": batch["image"]})
        return self.roles["painter"](self.roles["bottleneck"](tokens))

    def judge(self, block: Tensor) -> Tensor:
        """Blocks (B, C, H, H) in [0, 1] → logits (B,), positive where they look real."""
        return self.roles["discriminator"](block)

    def weigh_pixels(self, like: Tensor) -> Tensor:
        """Of the squared error: (H, H)."""
        size, band = self.config.hole_size, self.config.overlap
        weight = torch.full((size, size), self.config.overlap_weight, device=like.device)
        weight[band : size - band, band : size - band] = 1.0
        return weight

    def picture(self, batch: Batch) -> ImageGrid:
        """The image, what was seen of it, and the painting in its place."""
        seen = to_unit_range(batch["image"])
        return ImageGrid(
            {
                "original": self.put_in_place(seen, to_unit_range(batch["target"]), batch["corner"]),
                "visible": seen,
                "painted": self.put_in_place(seen, self.paint(batch), batch["corner"]),
            }
        )

    def put_in_place(self, image: Tensor, block: Tensor, corner: Tensor) -> Tensor:
        """Images (B, C, *sizes) with their blocks (B, C, H, H) where they belong."""
        whole = image.clone()
        for i, place in enumerate(corner.tolist()):
            block_of(whole[i], place, self.config.hole_size)[:] = block[i]
        return whole


class BlockPainter(nn.Module):
    """Bottleneck → block in [0, 1]: the second half of the authors' generator."""

    def __init__(self, config: ContextEncoderConfig, channels: int) -> None:
        super().__init__()
        start, doublings = factor_hole(config.hole_size)
        widths = tuple(config.width * 2**i for i in reversed(range(doublings)))
        self.start = (widths[0], start, start)
        self.project = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Linear(config.bottleneck_size, widths[0] * start**2)
        )
        self.decoder = MapDecoder(None, widths, channels, norm=True)

    def forward(self, bottleneck: Tensor) -> Tensor:
        """(B, Z) → (B, C, H, H)."""
        return self.decoder(self.project(bottleneck).unflatten(1, self.start)).float().sigmoid()


class BlockDiscriminator(nn.Module):
    """Block → logit; sees nothing around it (DCGAN's discriminator)."""

    def __init__(self, config: ContextEncoderConfig, channels: int) -> None:
        super().__init__()
        start, doublings = factor_hole(config.hole_size)
        widths = tuple(config.width * 2**i for i in range(doublings))
        self.trunk = nn.Sequential(*strided_convolutions((channels, *widths), "leaky_relu", normalize=True))
        self.judge = nn.Linear(widths[-1] * start**2, 1)

    def forward(self, block: Tensor) -> Tensor:
        """(B, C, H, H) in [0, 1] → (B,)."""
        return self.judge(self.trunk(block * 2 - 1).flatten(1)).squeeze(1).float()


def block_of(image: Any, corner: Any, size: int) -> Any:
    """The square of an image (C, *sizes) whose first row and column are `corner`; a view, which can be written to."""
    top, left = corner
    return image[:, top : top + size, left : left + size]


def factor_hole(size: int) -> tuple[int, int]:
    """A block's size as a small map and how often that is doubled: 64 → (4, 4), 14 → (7, 1)."""
    doublings = 0
    while size % 2 == 0 and size > 4:
        size, doublings = size // 2, doublings + 1
    return size, doublings


def check_hole(config: ContextEncoderConfig, encoder: ImageEncoder) -> None:
    """Raise a `UserError` for a hole that does not fit into the image, or that nothing can paint."""
    place = f"objective.hole_size={config.hole_size}"
    if config.hole_size >= min(encoder.sizes):
        size = encoder.config.image_size
        raise UserError(f"{place}: must be smaller than encoder.image_size={size}, usually half of it")
    start, doublings = factor_hole(config.hole_size)
    if not doublings or start > 7:
        raise UserError(
            f"{place}: is painted by doubling a map of at most 7 × 7; choose 8, 10, 12, 14, 16, 20, 24, 28, 32, …"
        )
    if 2 * config.overlap >= config.hole_size:
        raise UserError(
            f"objective.overlap={config.overlap}: two such bands leave nothing of {place} to paint out"
        )
