"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) on `transformers.SwinModel`: attention within shifted windows.
Its second version (Liu et al. 2022, arXiv:2111.09883) on `Swinv2Model`.

Windows need all their places, so no patch can be dropped (MAE); hidden ones get a token (SimMIM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel, Swinv2Config, Swinv2Model

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.base import ImageEncoder, ImageEncoderConfig
from pretrain.encoders.image.hiding import hide_pixels, hide_tokens
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.encoders.image.vit_like import embed_patches, xavier_uniform, xavier_uniform_kernel
from pretrain.ops.positions import interpolate_positions
from pretrain.ops.sizes import ImageSize

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class SwinEncoderConfig(ImageEncoderConfig):
    """Sizes as in `transformers.SwinConfig`; defaults are Swin-T."""

    name: str = "swin"
    patch_size: PositiveInt = 4
    """Each further stage halves the resolution again, and doubles the width."""
    embed_dim: PositiveInt = 96
    depths: tuple[PositiveInt, ...] = (2, 2, 6, 2)
    num_heads: tuple[PositiveInt, ...] = (3, 6, 12, 24)
    window_size: PositiveInt = 7
    mlp_ratio: PositiveFloat = 4.0
    drop_path_rate: NonNegativeFloat = 0.0


class SwinEncoder(ImageEncoder):
    """The last feature map as tokens, row by row, pooled to their mean."""

    Config: ClassVar[type] = SwinEncoderConfig
    HFConfig: ClassVar[Any] = SwinConfig
    HFModel: ClassVar[Any] = SwinModel
    gives = frozenset({"images", "masked"})
    lacks: ClassVar[Mapping[str, str]] = {"dropped": "its windows need all their places"}
    derived = ("hidden_size", "num_layers", "stage_names", "out_features", "out_indices")
    model_types: ClassVar[tuple[str, ...]] = ("swin",)
    attention: ClassVar[str] = "sdpa"
    """What `transformers` computes it with by default."""
    fits_windows: ClassVar[bool] = False
    """Whether a window becomes smaller where a stage's feature map is smaller than it."""
    model: Any

    def __init__(self, config: Any, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        self.check_stages()
        defaults = {"attn_implementation": self.attention}
        self.model = build_hf_model(
            self.HFModel, build_hf_config(self.HFConfig, config, self.derived, defaults, {})
        )
        self.dim = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.mask_token_size = config.embed_dim
        self.grid = self.position_grid = self.grid_of(self.sizes)
        self.check_windows(self.grid)
        self.token_grid = self.grids_of_stages(self.grid)[-1]
        self.num_patches = prod(self.token_grid)
        self.model.apply(xavier_uniform)
        xavier_uniform_kernel(self.model.embeddings.patch_embeddings.projection.weight)

    def check_stages(self) -> None:
        """Raise a `UserError` where stages and heads do not fit each other."""
        config = self.config
        if len(config.num_heads) != len(config.depths):
            raise UserError(
                f"encoder.num_heads={list(config.num_heads)}: needs one number for each of encoder.depths="
                f"{list(config.depths)}"
            )
        for stage, heads in enumerate(config.num_heads):
            if config.embed_dim * 2**stage % heads:
                raise UserError(
                    f"encoder.num_heads.{stage}={heads}: does not divide this stage's width "
                    f"{config.embed_dim * 2**stage}"
                )

    def grid_of(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Patches (rows, columns) of an image.

        Raises:
            UserError: patches do not fill it.
        """
        patch = self.config.patch_size
        if any(side % patch for side in sizes):
            raise UserError(
                f"images of {'×'.join(map(str, sizes))}: patches of {patch}×{patch} do not fill them; choose an "
                "encoder.image_size that is a multiple of encoder.patch_size"
            )
        return sizes[0] // patch, sizes[1] // patch

    def grids_of_stages(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """The feature map of each stage, of an image of `grid` patches."""
        grids = [grid]
        for _ in self.config.depths[1:]:
            rows, columns = grids[-1]
            grids.append(((rows + 1) // 2, (columns + 1) // 2))
        return grids

    def check_windows(self, grid: tuple[int, int]) -> None:
        """Raise a `UserError` where a feature map is smaller than a window, for which `transformers` has no biases."""
        least = min(min(stage) for stage in self.grids_of_stages(grid))
        if least < self.config.window_size and not self.fits_windows:
            size = "×".join(str(side * self.config.patch_size) for side in grid)
            raise UserError(
                f"encoder.window_size={self.config.window_size}: the last of {len(self.config.depths)} stages has "
                f"{least} places on a side of an image of {size}; take encoder.window_size={least}, fewer "
                "encoder.depths, or a larger image"
            )

    def forward(
        self,
        batch: dict[str, Any],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """`image` (B, C, H, W), bytes or floats in [0, 1] → tokens (B, N, D) of the last feature map.

        Patches that `mask` hides are the token `mask_token`, see `ImageEncoder.mask_token_size`.
        """
        embeddings = self.model.embeddings
        pixels = self.pixels(batch["image"])
        grid = self.grid_of(tuple(pixels.shape[2:]))
        self.check_windows(grid)
        self.restore_windows()
        if mask_token is None:
            pixels = hide_pixels(pixels, mask)
        x = embeddings.norm(embed_patches(embeddings.patch_embeddings.projection, pixels))  # (B, N, D)
        if mask_token is not None:
            x = hide_tokens(x, mask, mask_token, grid)
        if embeddings.position_embeddings is not None:
            x = x + interpolate_positions(embeddings.position_embeddings[0], self.grid, grid)
        x = embeddings.dropout(x)
        for stage, stage_grid in zip(self.model.encoder.layers, self.grids_of_stages(grid), strict=True):
            for block in stage.blocks:
                x = block(x, stage_grid)[0]
            if stage.downsample is not None:
                x = stage.downsample(x, stage_grid)  # (B, N / 4, 2 · D)
        return self.model.layernorm(x)

    def restore_windows(self) -> None:
        """Undo what blocks of `transformers` keep of the last image: where a window filled it, they stop to shift."""
        if self.fits_windows:
            return
        for stage in self.model.encoder.layers:
            for i, block in enumerate(stage.blocks):
                block.window_size = self.config.window_size
                block.shift_size = i % 2 * (self.config.window_size // 2)

    def pooling_code(self) -> str:
        return "tokens.mean(1)  # the mean over places"

    def blocks(self) -> list[nn.Module]:
        """Those of all stages, with what merges patches between them."""
        stages = self.model.encoder.layers
        parts = [[*stage.blocks, stage.downsample] for stage in stages]
        return [block for part in parts for block in part if block is not None]

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.layernorm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        return {**read_image_processor(folder), **super().settings_from(folder, values)}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)


@dataclass(frozen=True)
class SwinV2EncoderConfig(SwinEncoderConfig):
    """Sizes as in `transformers.Swinv2Config`; defaults are Swin V2-T."""

    name: str = "swinv2"
    image_size: ImageSize = 256
    window_size: PositiveInt = 8


class SwinV2Encoder(SwinEncoder):
    """Cosine attention, positions by a small network, and norms behind what they used to precede."""

    Config = SwinV2EncoderConfig
    HFConfig = Swinv2Config
    HFModel = Swinv2Model
    model_types = ("swinv2",)
    attention = "eager"
    fits_windows = True
