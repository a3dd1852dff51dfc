"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) on `transformers.ViTModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.encoders.image.vit_like import ViTLike, ViTLikeConfig, xavier_uniform, xavier_uniform_kernel
from pretrain.ops.positions import interpolate_positions, sincos_positions

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class ViTEncoderConfig(ViTLikeConfig):
    """Sizes as in `transformers.ViTConfig`; defaults are ViT-B/16."""

    name: str = "vit"
    intermediate_size: PositiveInt | None = None
    """Default 4 × hidden_size."""
    positions: Literal["sincos", "learned"] = "sincos"
    """`sincos`: fixed 2-D sine-cosine positions as in MAE; `learned`: N(0, .02²), trained."""
    pooling: Literal["mean", "cls"] = "mean"


class ViTEncoder(ViTLike):
    """A class token and a table of positions, sine-cosine or learned."""

    Config = ViTEncoderConfig
    HFConfig = ViTConfig
    model_types = ("vit",)
    lead = 1
    model: ViTModel

    def __init__(self, config: ViTEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        self.model = build_hf_model(ViTModel, hf_config(config))
        self.initialize()

    def initialize(self) -> None:
        """Xavier-uniform matrices, zero biases, sine-cosine positions (models_mae.py of the MAE reference)."""
        self.model.apply(xavier_uniform)
        embeddings = self.model.embeddings
        xavier_uniform_kernel(self.projection.weight)
        nn.init.normal_(embeddings.cls_token, std=0.02)
        if self.config.positions == "sincos":
            table = sincos_positions(self.grid, self.dim)  # (N, D)
            embeddings.position_embeddings.data[0, 0].zero_()
            embeddings.position_embeddings.data[0, 1:] = table
            embeddings.position_embeddings.requires_grad_(False)

    @property
    def projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embeddings.projection

    def add_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return x + interpolate_positions(self.model.embeddings.position_embeddings[0, 1:], self.grid, grid)

    def lead_tokens(self) -> Tensor:
        embeddings = self.model.embeddings
        return embeddings.cls_token + embeddings.position_embeddings[:, :1]

    def run_blocks(self, x: Tensor, grid: tuple[int, int], ids_keep: Tensor | None) -> Tensor:
        x = self.model.embeddings.dropout(x)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.layernorm(x)

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


def hf_config(config: ViTEncoderConfig) -> ViTConfig:
    """Our settings as `transformers` writes them."""
    defaults = {"layer_norm_eps": 1e-6, "attn_implementation": "sdpa"}
    values = {"intermediate_size": config.intermediate_size or 4 * config.hidden_size}
    hf: ViTConfig = build_hf_config(ViTConfig, config, ViTEncoder.derived, defaults, values)
    return hf
