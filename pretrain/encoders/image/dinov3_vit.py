"""DINOv3's ViT (Siméoni et al. 2025, arXiv:2508.10104) on `transformers.DINOv3ViTModel` with registers and RoPE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.encoders.image.vit_like import ViTLike, ViTLikeConfig, xavier_uniform, xavier_uniform_kernel
from pretrain.ops.positions import rotary_angles

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class DINOv3ViTEncoderConfig(ViTLikeConfig):
    """Sizes as in `transformers.DINOv3ViTConfig`; defaults are ViT-S/16."""

    name: str = "dinov3_vit"
    hidden_size: PositiveInt = 384
    num_attention_heads: PositiveInt = 6
    intermediate_size: PositiveInt | None = None
    """Default 4 × hidden_size."""
    num_register_tokens: NonNegativeInt = 4


class DINOv3ViTEncoder(ViTLike):
    """A class token, registers, and patches that know their place by rotation (RoPE), whatever size the image has.

    `transformers` shifts, jitters and rescales the coordinates at random in training where `pos_embed_shift`,
    `pos_embed_jitter` or `pos_embed_rescale` are set, the same for all samples of a rank. Here they stay as they are:
    what a sample gives must not depend on how many ranks there are. The settings of a folder are kept for its release.
    """

    Config = DINOv3ViTEncoderConfig
    HFConfig = DINOv3ViTConfig
    derived = ("stage_names", "out_features", "out_indices")
    model_types = ("dinov3_vit",)
    model: DINOv3ViTModel

    def __init__(self, config: DINOv3ViTEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        head = config.hidden_size // config.num_attention_heads
        if config.hidden_size % config.num_attention_heads or head % 4:
            raise UserError(
                f"encoder.num_attention_heads={config.num_attention_heads}: rotary positions on two axes need heads "
                f"whose width is a multiple of 4; encoder.hidden_size={config.hidden_size} has none such then"
            )
        defaults = {"attn_implementation": "sdpa", "pos_embed_rescale": None}
        values = {"intermediate_size": config.intermediate_size or 4 * config.hidden_size}
        hf = build_hf_config(DINOv3ViTConfig, config, self.derived, defaults, values)
        self.model = build_hf_model(DINOv3ViTModel, hf)
        self.lead = 1 + config.num_register_tokens
        self.initialize()

    def initialize(self) -> None:
        self.model.apply(xavier_uniform)
        embeddings = self.model.embeddings
        xavier_uniform_kernel(self.projection.weight)
        embeddings.mask_token.requires_grad_(False)  # an objective that hides has its own
        embeddings.register_tokens.requires_grad_(self.lead > 1)

    @property
    def projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embeddings

    def lead_tokens(self) -> Tensor:
        return torch.cat([self.model.embeddings.cls_token, self.model.embeddings.register_tokens], dim=1)

    def run_blocks(self, x: Tensor, grid: tuple[int, int], ids_keep: Tensor | None) -> Tensor:
        angles = rotary_angles(grid, self.model.rope_embeddings.inv_freq)  # (N, head width)
        if ids_keep is not None:
            angles = angles[ids_keep].unsqueeze(1)  # (B, 1, K, head width): the same for all heads
        rotation = angles.cos(), angles.sin()
        for layer in self.model.model.layer:
            x = layer(x, position_embeddings=rotation)
        return self.model.norm(x)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.model.layer)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.norm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """What the processor delivers is the image size: the model itself takes any."""
        own = super().settings_from(folder, values)
        return {**own, **read_image_processor(folder), "pooling": "cls"}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)
