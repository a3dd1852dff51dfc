"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) on `transformers.ViTModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.base import ImageEncoder, ImageEncoderConfig
from pretrain.encoders.image.hiding import hide_pixels, hide_tokens
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.encoders.patches import PatchEncoder
from pretrain.ops.patches import patchify
from pretrain.ops.positions import interpolate_positions, sincos_positions

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class ViTEncoderConfig(ImageEncoderConfig):
    """Sizes as in `transformers.ViTConfig`; defaults are ViT-B/16."""

    name: str = "vit"
    patch_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt | None = None
    """Default 4 × hidden_size."""
    positions: Literal["sincos", "learned"] = "sincos"
    """`sincos`: fixed 2-D sine-cosine positions as in MAE; `learned`: N(0, .02²), trained."""
    pooling: Literal["mean", "cls"] = "mean"


class ViTEncoder(ImageEncoder, PatchEncoder):
    """Patches in, tokens out; patches that are hidden are dropped before the first block (MAE's encoder)."""

    Config = ViTEncoderConfig
    HFConfig = ViTConfig
    model_types = ("vit",)
    lead = 1
    model: ViTModel

    def __init__(self, config: ViTEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        if config.image_size % config.patch_size:
            raise UserError(
                f"encoder.patch_size={config.patch_size}: does not divide encoder.image_size={config.image_size}"
            )
        self.model = build_hf_model(ViTModel, hf_config(config))
        self.dim = config.hidden_size
        self.patch = (config.patch_size, config.patch_size)
        self.grid = self.token_grid = (config.image_size // config.patch_size,) * 2
        self.mask_token_size = self.dim
        self.channels = config.num_channels
        self.initialize()

    def initialize(self) -> None:
        """Xavier-uniform matrices, zero biases, sine-cosine positions (models_mae.py of the MAE reference).

        `transformers` draws N(0, .02²) instead, far too small for narrow encoders: they stay at the mean predictor.
        """
        self.model.apply(xavier_uniform)
        embeddings = self.model.embeddings
        projection = embeddings.patch_embeddings.projection.weight
        nn.init.xavier_uniform_(projection.data.view(projection.shape[0], -1))
        nn.init.normal_(embeddings.cls_token, std=0.02)
        if self.config.positions == "sincos":
            table = sincos_positions(self.grid, self.dim)  # (N, D)
            embeddings.position_embeddings.data[0, 0].zero_()
            embeddings.position_embeddings.data[0, 1:] = table
            embeddings.position_embeddings.requires_grad_(False)

    def forward(
        self,
        batch: dict[str, Any],
        ids_keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """Tokens of the class token and of the patches in `ids_keep`.

        Args:
            batch: `image` (B, C, H, W), bytes or floats in [0, 1], of any size that patches fill.
            ids_keep: (B, K) indices of the patches to see; None sees all N.
            mask, mask_token: what is hidden but keeps its place, see `ImageEncoder.mask_token_size`.
        Returns:
            (B, 1 + K, D), the class token first, the patches in the order of `ids_keep`.
        """
        embeddings = self.model.embeddings
        pixels = self.values(batch)  # (B, C, H, W)
        rows, columns = self.grid_of(pixels)
        positions = interpolate_positions(embeddings.position_embeddings[0, 1:], self.grid, (rows, columns))
        if mask_token is None:
            pixels = hide_pixels(pixels, mask)
        x = patch_tokens(self.model, pixels)  # (B, N, D)
        if mask_token is not None:
            x = hide_tokens(x, mask, mask_token, (rows, columns))
        x = x + positions
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))  # (B, K, D)
        cls = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        x = torch.cat([cls.expand(len(x), -1, -1).to(x.dtype), x], dim=1)  # (B, 1 + K, D)
        x = embeddings.dropout(x)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.layernorm(x)

    def values(self, batch: dict[str, Any]) -> Tensor:
        return self.pixels(batch["image"])

    def pool(self, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """The mean of the patch tokens, or the class token: (B, 1 + N, D) → (B, D)."""
        return tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(1)

    def pooling_code(self) -> str:
        if self.config.pooling == "cls":
            return "tokens[:, 0]  # the class token"
        return "tokens[:, 1:].mean(1)  # the mean of the patch tokens; token 0 is the class token"

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.layernorm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        own = super().settings_from(folder, values)
        return {**read_image_processor(folder), **own, "positions": "learned", "pooling": "cls"}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)


def patch_tokens(model: ViTModel, pixels: Tensor) -> Tensor:
    """The patch projection as one matrix product: (B, C, H, W) → (B, N, D).

    The same numbers as the model's strided convolution, several times faster on a CPU.
    """
    projection = model.embeddings.patch_embeddings.projection
    x = patchify(pixels, tuple(projection.kernel_size), channels_last=False)  # (B, N, C·p·p)
    return nn.functional.linear(x, projection.weight.flatten(1), projection.bias)  # (B, N, D)


def hf_config(config: ViTEncoderConfig) -> ViTConfig:
    """Our settings as `transformers` writes them."""
    defaults = {"layer_norm_eps": 1e-6, "attn_implementation": "sdpa"}
    values = {"intermediate_size": config.intermediate_size or 4 * config.hidden_size}
    hf: ViTConfig = build_hf_config(ViTConfig, config, ViTEncoder.derived, defaults, values)
    return hf


def xavier_uniform(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers, identity for layer norms; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
