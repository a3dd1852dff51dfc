"""DINOv2's ViT (Oquab et al. 2023, arXiv:2304.07193) on `transformers.Dinov2Model`; with registers (Darcet et al. 2023,
arXiv:2309.16588) on `Dinov2WithRegistersModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.encoders.image.vit_like import ViTLike, ViTLikeConfig, xavier_uniform, xavier_uniform_kernel
from pretrain.ops.positions import interpolate_positions
from pretrain.ops.sizes import rows_and_columns

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class DINOv2EncoderConfig(ViTLikeConfig):
    """Sizes as in `transformers.Dinov2Config`; defaults are ViT-B/14."""

    name: str = "dinov2"
    patch_size: PositiveInt = 14
    mlp_ratio: PositiveInt = 4
    """Width of the feed-forward layer by hidden_size."""
    position_size: PositiveInt | None = None
    """Side of the square image whose positions are learned; for `image_size` they are interpolated. Default: the
    longer side of `image_size`. The published weights have 518, and see images of 224."""


class DINOv2Encoder(ViTLike):
    """A class token, learned positions on a square grid that are interpolated to that of the image, layer scale."""

    Config: ClassVar[type] = DINOv2EncoderConfig
    HFConfig: ClassVar[Any] = Dinov2Config
    HFModel: ClassVar[Any] = Dinov2Model
    derived = ("image_size", "stage_names", "out_features", "out_indices")
    model_types: ClassVar[tuple[str, ...]] = ("dinov2",)
    antialias: ClassVar[bool] = False
    """Whether `transformers` smooths positions that are interpolated to a smaller grid."""
    lead = 1
    model: Any

    def __init__(self, config: Any, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        side = config.position_size or max(self.sizes)
        if side % config.patch_size:
            raise UserError(
                f"encoder.position_size={side}: must be a multiple of {config.patch_size}, a patch"
            )
        self.position_grid = (side // config.patch_size,) * 2
        defaults = {"attn_implementation": "sdpa"}
        hf = build_hf_config(self.HFConfig, config, self.derived, defaults, {"image_size": side})
        self.model = build_hf_model(self.HFModel, hf)
        self.initialize()

    def initialize(self) -> None:
        self.model.apply(xavier_uniform)
        embeddings = self.model.embeddings
        xavier_uniform_kernel(self.projection.weight)
        if embeddings.mask_token is not None:  # an objective that hides has its own
            embeddings.mask_token.requires_grad_(False)

    @property
    def projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embeddings.projection

    def add_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        table = self.model.embeddings.position_embeddings[0, 1:]
        return x + interpolate_positions(table, self.position_grid, grid, self.antialias)

    def lead_tokens(self) -> Tensor:
        embeddings = self.model.embeddings
        return embeddings.cls_token + embeddings.position_embeddings[:, :1]

    def run_blocks(self, x: Tensor, grid: tuple[int, int], ids_keep: Tensor | None) -> Tensor:
        x = self.model.embeddings.dropout(x)
        for layer in self.model.encoder.layer:
            x = layer(x)
        return self.model.layernorm(x)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.layernorm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """What the processor delivers is the image size; the folder's own is that of its positions."""
        rows, columns = rows_and_columns(values.get("image_size", cls.HFConfig().image_size))
        if rows != columns:
            raise UserError(f"{folder / 'config.json'}: image_size=[{rows}, {columns}]: positions of DINOv2 are on a "
                            "square grid")  # fmt: skip
        own = {**super().settings_from(folder, values), "position_size": rows, "image_size": rows}
        return {**own, **read_image_processor(folder), "pooling": "cls"}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)


@dataclass(frozen=True)
class DINOv2WithRegistersEncoderConfig(DINOv2EncoderConfig):
    """Sizes as in `transformers.Dinov2WithRegistersConfig`; defaults are ViT-B/14 with registers."""

    name: str = "dinov2_with_registers"
    num_register_tokens: NonNegativeInt = 4


class DINOv2WithRegistersEncoder(DINOv2Encoder):
    """The same with tokens that belong to no place, between the class token and the patches."""

    Config = DINOv2WithRegistersEncoderConfig
    HFConfig = Dinov2WithRegistersConfig
    HFModel = Dinov2WithRegistersModel
    model_types = ("dinov2_with_registers",)
    antialias = True

    def __init__(self, config: DINOv2WithRegistersEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        self.lead = 1 + config.num_register_tokens
        self.model.embeddings.register_tokens.requires_grad_(self.lead > 1)

    def lead_tokens(self) -> Tensor:
        return torch.cat([super().lead_tokens(), self.model.embeddings.register_tokens], dim=1)
