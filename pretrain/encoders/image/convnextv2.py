"""ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808) on `transformers.ConvNextV2Model`: the convolutional encoder.

It has no batch norm, so what it computes for a sample does not depend on which others share its batch, nor on how
many processes share the global batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import ConvNextV2Config, ConvNextV2Model

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.base import ImageEncoder, ImageEncoderConfig
from pretrain.encoders.image.hiding import hide_pixels
from pretrain.encoders.image.processor import read_image_processor, save_image_processor

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class ConvNextV2EncoderConfig(ImageEncoderConfig):
    """Sizes as in `transformers.ConvNextV2Config`; defaults are ConvNeXt V2-T."""

    name: str = "convnextv2"
    patch_size: PositiveInt = 4
    """Stride of the first convolution; every further stage halves the resolution again."""
    hidden_sizes: tuple[PositiveInt, ...] = (96, 192, 384, 768)
    depths: tuple[PositiveInt, ...] = (3, 3, 9, 3)


class ConvNextV2Encoder(ImageEncoder):
    """The last feature map as tokens, row by row."""

    Config = ConvNextV2EncoderConfig
    HFConfig = ConvNextV2Config
    gives = frozenset({"images", "masked"})
    lacks: ClassVar[Mapping[str, str]] = {"dropped": "a convolution needs all its neighbours"}
    derived = ("num_stages", "stage_names", "out_features", "out_indices")
    model_types = ("convnextv2",)
    model: ConvNextV2Model

    def __init__(self, config: ConvNextV2EncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        if len(config.hidden_sizes) != len(config.depths):
            raise UserError(
                f"encoder.depths={list(config.depths)}: needs one number for each of encoder.hidden_sizes="
                f"{list(config.hidden_sizes)}"
            )
        rows, columns = (side // config.patch_size for side in self.sizes)
        for _ in config.depths[1:]:
            rows, columns = rows // 2, columns // 2
        if min(rows, columns) < 1:
            raise UserError(
                f"encoder.image_size={config.image_size}: too small for {len(config.depths)} stages"
            )
        self.token_grid = (rows, columns)
        self.num_patches = rows * columns
        values = {
            "num_stages": len(config.depths),
            "hidden_sizes": list(config.hidden_sizes),
            "depths": list(config.depths),
        }
        hf = build_hf_config(ConvNextV2Config, config, self.derived, {}, values)
        self.model = build_hf_model(ConvNextV2Model, hf)
        self.dim = config.hidden_sizes[-1]
        self.mask_token_size = config.num_channels
        self.model.apply(variance_preserving)
        # The norm behind transformers' own pooling is not on the way to the tokens, so nothing would ever train it.
        self.model.layernorm.requires_grad_(False)

    def forward(
        self,
        batch: dict[str, Any],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """`image` (B, C, H, W), bytes or floats in [0, 1] → tokens (B, N, D) of the last feature map.

        Places that `mask` hides have the colour `mask_token`, see `ImageEncoder.mask_token_size`.
        """
        x = self.model.embeddings(hide_pixels(self.pixels(batch["image"]), mask, mask_token))
        x = self.model.encoder(x).last_hidden_state  # (B, D, h, w)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)

    def pooling_code(self) -> str:
        return "tokens.flatten(2).mean(2)  # the mean over places"

    def blocks(self) -> list[nn.Module]:
        return [
            m
            for name, m in self.model.encoder.named_modules()
            if re.fullmatch(r"stages\.\d+\.layers\.\d+", name)
        ]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """What the processor delivers is the image size: the model itself takes any."""
        return {**super().settings_from(folder, values), **read_image_processor(folder)}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)


def variance_preserving(module: nn.Module) -> None:
    """Kaiming-uniform convolutions and Xavier-uniform matrices; for `Module.apply`.

    `transformers` draws N(0, .02²), which is far too small for narrow networks.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
