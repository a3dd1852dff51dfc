"""ResNet (He et al. 2015, arXiv:1512.03385) on `transformers.ResNetModel`.

Its batch norm makes what a sample gives depend on the others of its micro-batch. It is computed over all ranks
together, so that a micro-batch is the same on any number of them; see `ResNetEncoderConfig.norm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from data_tools.errors import UserError
from pretrain.encoders.hf_model import build_hf_config, build_hf_model
from pretrain.encoders.image.base import ImageEncoder, ImageEncoderConfig
from pretrain.encoders.image.hiding import hide_pixels
from pretrain.encoders.image.processor import read_image_processor, save_image_processor
from pretrain.ops.batch_norm import SyncedBatchNorm2d, sync_batch_norms

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class ResNetEncoderConfig(ImageEncoderConfig):
    """Sizes as in `transformers.ResNetConfig`; defaults are ResNet-50."""

    name: str = "resnet"
    embedding_size: PositiveInt = 64
    """Channels of the stem, which divides the resolution by four."""
    hidden_sizes: tuple[PositiveInt, ...] = (256, 512, 1024, 2048)
    depths: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    """Layers of each stage; every stage but the first halves the resolution."""
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    norm: Literal["batch", "frozen"] = "batch"
    """`batch`: in training, statistics of the micro-batch over all ranks; `frozen`: the running ones as they came, for
    weights that were pretrained. Both use the running ones outside of training, and a release is the same."""


class ResNetEncoder(ImageEncoder):
    """The last feature map as tokens, row by row, pooled to their mean."""

    Config = ResNetEncoderConfig
    HFConfig = ResNetConfig
    gives = frozenset({"images", "masked"})
    lacks: ClassVar[Mapping[str, str]] = {"dropped": "a convolution needs all its neighbours"}
    derived = ("stage_names", "out_features", "out_indices")
    model_types = ("resnet",)
    model: Any

    def __init__(self, config: ResNetEncoderConfig, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        if len(config.hidden_sizes) != len(config.depths):
            raise UserError(
                f"encoder.depths={list(config.depths)}: needs one number for each of encoder.hidden_sizes="
                f"{list(config.hidden_sizes)}"
            )
        hf = build_hf_config(
            ResNetConfig, config, self.derived, {}, {"hidden_sizes": list(config.hidden_sizes)}
        )
        self.model = build_hf_model(ResNetModel, hf)
        sync_batch_norms(self.model, frozen=config.norm == "frozen")
        self.couples_samples = config.norm == "batch"
        self.dim = config.hidden_sizes[-1]
        self.mask_token_size = config.num_channels
        rows, columns = self.sizes
        for _ in range(2 + len(config.depths) - 1 + hf.downsample_in_first_stage):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        self.token_grid = (rows, columns)
        self.num_patches = rows * columns

    def forward(
        self,
        batch: dict[str, Any],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """`image` (B, C, H, W), bytes or floats in [0, 1] → tokens (B, N, D) of the last feature map.

        In training on all ranks together. Places that `mask` hides have the colour `mask_token`, see
        `ImageEncoder.mask_token_size`.
        """
        x = self.model.embedder(hide_pixels(self.pixels(batch["image"]), mask, mask_token))
        for stage in self.model.encoder.stages:
            for layer in stage.layers:
                x = layer(x)  # (B, D, h, w)
        for module in self.model.modules():
            if isinstance(module, SyncedBatchNorm2d):
                module.update_statistics()
        return x.flatten(2).transpose(1, 2)  # (B, N, D)

    def pooling_code(self) -> str:
        return "tokens.flatten(2).mean(2)  # the mean over places"

    def blocks(self) -> list[nn.Module]:
        return [layer for stage in self.model.encoder.stages for layer in stage.layers]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """What the processor delivers is the image size: the model itself takes any."""
        return {**super().settings_from(folder, values), **read_image_processor(folder)}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_image_processor(self.config, folder)
