"""What ViT, DINOv2 and DINOv3 share: patches become tokens, some may be hidden or dropped, and blocks see them.

They differ in how a token knows its place, and in which tokens lead the patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.image.base import ImageEncoder, ImageEncoderConfig
from pretrain.encoders.image.hiding import hide_pixels, hide_tokens
from pretrain.encoders.patches import PatchEncoder
from pretrain.ops.patches import patchify

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class ViTLikeConfig(ImageEncoderConfig):
    """Sizes by their names in `transformers`."""

    patch_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    pooling: Literal["mean", "cls"] = "cls"


class ViTLike(ImageEncoder, PatchEncoder):
    """Patches in, tokens out; patches that are dropped are never computed (MAE's encoder).

    A family defines `projection`, `lead_tokens`, `run_blocks`, and `add_positions` where blocks do not see to them.
    """

    gives = frozenset({"images", "dropped", "masked"})

    def __init__(self, config: Any, dataset: Dataset | None) -> None:
        super().__init__(config, dataset)
        if any(side % config.patch_size for side in self.sizes):
            raise UserError(
                f"encoder.patch_size={config.patch_size}: does not divide encoder.image_size={config.image_size}"
            )
        self.patch = (config.patch_size, config.patch_size)
        rows, columns = self.sizes
        self.grid = self.token_grid = (rows // config.patch_size, columns // config.patch_size)
        self.position_grid = self.grid
        """Of learned positions; those of other grids are interpolated."""
        self.channels = config.num_channels
        self.dim = self.mask_token_size = config.hidden_size

    @property
    def projection(self) -> nn.Conv2d:
        """What embeds patches."""
        raise TypeError(f"{type(self).__name__} must define projection")

    def lead_tokens(self) -> Tensor:
        """(1, lead, D): what stands before the patches, the class token first."""
        raise TypeError(f"{type(self).__name__} must define lead_tokens()")

    def add_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embedded patches (B, N, D) of a grid of (rows, columns) that know their places."""
        return x

    def run_blocks(self, x: Tensor, grid: tuple[int, int], ids_keep: Tensor | None) -> Tensor:
        """All blocks and the final norm: (B, lead + K, D) → the same shape; the patches are `ids_keep` of the grid."""
        raise TypeError(f"{type(self).__name__} must define run_blocks()")

    def forward(
        self,
        batch: dict[str, Any],
        ids_keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        **hidden: Any,
    ) -> Tensor:
        """Tokens of the class token, of registers where there are some, and of the patches in `ids_keep`.

        Args:
            batch: `image` (B, C, H, W), bytes or floats in [0, 1], of any size that patches fill.
            ids_keep: (B, K) indices of the patches to see; None sees all N.
            mask, mask_token: what is hidden but keeps its place, see `ImageEncoder.mask_token_size`.
        Returns:
            (B, lead + K, D), the class token first, the patches in the order of `ids_keep`.
        """
        pixels = self.values(batch)  # (B, C, H, W)
        rows, columns = self.grid_of(pixels)
        if mask_token is None:
            pixels = hide_pixels(pixels, mask)
        x = embed_patches(self.projection, pixels)  # (B, N, D)
        if mask_token is not None:
            x = hide_tokens(x, mask, mask_token, (rows, columns))
        x = self.add_positions(x, (rows, columns))
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))  # (B, K, D)
        lead = self.lead_tokens().expand(len(x), -1, -1)
        x = torch.cat([lead.to(x.dtype), x], dim=1)  # (B, lead + K, D)
        return self.run_blocks(x, (rows, columns), ids_keep)

    def values(self, batch: dict[str, Any]) -> Tensor:
        return self.pixels(batch["image"])

    def pool(self, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """The mean of the patch tokens, or the class token: (B, lead + N, D) → (B, D)."""
        return tokens[:, 0] if self.config.pooling == "cls" else tokens[:, self.lead :].mean(1)

    def pooling_code(self) -> str:
        if self.config.pooling == "cls":
            return "tokens[:, 0]  # the class token"
        others = "token 0 is the class token" if self.lead == 1 else "class token and registers come first"
        return f"tokens[:, {self.lead}:].mean(1)  # the mean of the patch tokens; {others}"


def embed_patches(projection: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A convolution whose stride is its kernel as one matrix product: (B, C, H, W) → (B, N, D).

    The same numbers, several times faster on a CPU.
    """
    size = (projection.kernel_size[0], projection.kernel_size[1])
    x = patchify(pixels, size, channels_last=False)  # (B, N, C·p·p)
    return nn.functional.linear(x, projection.weight.flatten(1), projection.bias)  # (B, N, D)


def xavier_uniform(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers, identity for layer norms; for `Module.apply`.

    `transformers` draws N(0, .02²) instead, far too small for narrow encoders: they stay at the mean predictor.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def xavier_uniform_kernel(kernel: Tensor) -> None:
    """The same for the kernels (D, C, p, p) that embed patches, seen as one matrix."""
    nn.init.xavier_uniform_(kernel.data.view(kernel.shape[0], -1))
