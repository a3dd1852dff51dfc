"""SimMIM (Xie et al. 2021, arXiv:2111.09886): hide large blocks of an image, paint their pixels with one linear layer.

Hidden places stay where they are, as a mask token or a colour, so any encoder of images will do; in exchange it sees
every place, where MAE's sees a quarter of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.augment.image import Interpolation, random_view
from pretrain.config.schema import Range
from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.image.hiding import enlarge_mask
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class SimMIMConfig:
    """Defaults of the reference (github.com/microsoft/SimMIM: config.py, data/data_simmim.py)."""

    name: str = "simmim"
    mask_ratio: float = 0.6
    mask_patch_size: PositiveInt = 32
    """Side of the square blocks that are hidden as a whole, in pixels."""
    hidden: Literal["token", "mean"] = "token"
    """What stands for a hidden place: a learned token (behind patch embeddings) or learned colour (where an encoder has
    none), or the mean colour in every encoder."""
    crop_scale: Range = (0.67, 1.0)
    """Area of the random crop; (1, 1) takes the whole image."""
    crop_interpolation: Interpolation = "bilinear"
    flip: bool = True
    """Mirror half of the images; not for digits or text."""


class SimMIM(Objective):
    """Mean over hidden pixels and channels of |guess − pixel|, pixels of zero mean and unit variance."""

    Config = SimMIMConfig
    hides = "blocks of an image, which keep their place"
    needs: ClassVar[Mapping[str, str]] = {
        "images": "SimMIM paints images",
        "masked": "SimMIM hides places, and this encoder does not say how it hides one (docs/encoders.md)",
    }
    alternatives = ("mlm", "autoencoder")
    encoder: ImageEncoder

    def __init__(self, config: SimMIMConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        check_tiling(encoder)
        self.blocks = count_blocks(config.mask_patch_size, encoder)
        self.hidden_blocks = math.ceil(config.mask_ratio * math.prod(self.blocks))
        if not 0 < config.mask_ratio < 1 or self.hidden_blocks == math.prod(self.blocks):
            raise UserError(
                f"objective.mask_ratio={config.mask_ratio}: must lie between 0 and 1, and leave some of "
                f"{math.prod(self.blocks)} blocks of {config.mask_patch_size}² pixels to see"
            )
        if config.hidden == "token":
            self.roles["mask_token"] = MaskToken(encoder.mask_token_size)
        self.roles["head"] = PixelHead(encoder)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W), "mask": (h, w)}: a crop, and which of its blocks are hidden."""
        config, encoder = self.config, self.encoder
        image = random_view(
            encoder.image_of(sample),
            rng,
            encoder.config.image_size,
            config.crop_scale,
            config.crop_interpolation,
            config.flip,
        )
        mask = np.zeros(math.prod(self.blocks), dtype=bool)
        mask[rng.permutation(len(mask))[: self.hidden_blocks]] = True
        return {"image": image, "mask": mask.reshape(self.blocks)}

    def count_per_sample(self, phase: Phase) -> float:
        """Hidden pixels, in all channels."""
        pixels = self.hidden_blocks * self.config.mask_patch_size**2
        return float(pixels * self.encoder.config.num_channels)

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        pixels = self.encoder.pixels(batch["image"])  # (B, C, H, W)
        hidden = enlarge_mask(batch["mask"], self.encoder.sizes).unsqueeze(1)  # (B, 1, H, W)
        error = (self.predict(batch).float() - pixels).abs()
        return Loss((error * hidden).sum())

    def predict(self, batch: Batch) -> Tensor:
        """The guess for every pixel, hidden or not: (B, C, H, W), normalised."""
        token = self.roles["mask_token"]() if "mask_token" in self.roles else None
        tokens = self.roles["encoder"](batch, mask=batch["mask"], mask_token=token)  # (B, lead + N, D)
        return self.roles["head"](tokens)

    def picture(self, batch: Batch) -> ImageGrid:
        """The image, what the encoder saw of it, and the hidden blocks painted."""
        pixels = self.encoder.pixels(batch["image"])
        hidden = enlarge_mask(batch["mask"], self.encoder.sizes).unsqueeze(1)
        painted = torch.where(hidden, self.predict(batch).float(), pixels)
        original = self.encoder.displayable(pixels)
        return ImageGrid(
            {
                "original": original,
                "visible": original.masked_fill(hidden, 0.5),
                "reconstruction": self.encoder.displayable(painted),
            }
        )


class MaskToken(nn.Module):
    """What stands for a hidden place. A role, so that encoders are released without it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(size))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self) -> Tensor:
        """(D,); a copy, for an engine may free the parameter behind this call."""
        return self.mask_token.clone()


class PixelHead(nn.Module):
    """One linear layer from a token to the pixels of its place (a 1×1 convolution and a pixel shuffle)."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.grid = encoder.token_grid
        self.stride = encoder.sizes[0] // self.grid[0]
        self.project = nn.Linear(encoder.dim, encoder.config.num_channels * self.stride**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, lead + N, D) → (B, C, H, W)."""
        x = self.project(tokens[:, -math.prod(self.grid) :])  # (B, N, C·s²)
        x = x.transpose(1, 2).unflatten(2, self.grid)  # (B, C·s², h, w)
        return F.pixel_shuffle(x, self.stride)


def check_tiling(encoder: ImageEncoder) -> None:
    """Raise a `UserError` for an encoder whose tokens do not tile the image."""
    (height, width), (rows, columns) = encoder.sizes, encoder.token_grid
    if height % rows or width % columns or height // rows != width // columns:
        raise UserError(
            f"encoder.image_size: {height}×{width} pixels are no whole squares for {rows}×{columns} tokens; choose a "
            f"multiple of the encoder's stride, e.g. {rows * math.ceil(height / rows)}"
        )


def count_blocks(size: int, encoder: ImageEncoder) -> tuple[int, int]:
    """Rows and columns of blocks of `size`² pixels.

    Raises:
        UserError: they do not fill the image, or cut patches.
    """
    height, width = encoder.sizes
    if height % size or width % size:
        common = math.gcd(height, width)
        fitting = [n for n in range(1, common + 1) if common % n == 0]
        raise UserError(
            f"objective.mask_patch_size={size}: blocks do not fill {height}×{width} pixels; the nearest that do: "
            f"{min(fitting, key=lambda n: abs(n - size))}"
        )
    patch = getattr(encoder.config, "patch_size", 1)
    if encoder.mask_token_size != encoder.config.num_channels and size % patch:
        raise UserError(
            f"objective.mask_patch_size={size}: cuts patches; choose a multiple of encoder.patch_size={patch}"
        )
    return height // size, width // size
