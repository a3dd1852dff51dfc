"""Masked autoencoder (He et al. 2021, arXiv:2111.06377): see a few patches, paint the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.augment.config import ViewConfig
from pretrain.augment.image import Interpolation, random_view
from pretrain.augment.views import Augmentation, Views
from pretrain.config.schema import Range
from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.image.vit import ViTEncoderConfig, hf_config
from pretrain.encoders.image.vit_like import xavier_uniform
from pretrain.encoders.patches import PatchEncoder
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.ops.positions import interpolate_positions, sincos_positions

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset
    from pretrain.tracking.pictures import Picture


@dataclass(frozen=True)
class MAEConfig:
    """Defaults of the reference (main_pretrain.py, models_mae.py), but for `crop_interpolation`."""

    name: str = "mae"
    mask_ratio: float = 0.75
    normalize_target: bool = True
    """Each patch's target has zero mean and unit variance."""
    decoder_hidden_size: PositiveInt = 512
    decoder_num_hidden_layers: NonNegativeInt = 8
    decoder_num_attention_heads: PositiveInt = 16
    crop_scale: Range = (0.2, 1.0)
    """Area of the random crop; (1, 1) takes the whole image."""
    crop_interpolation: Interpolation = "bilinear"
    """How the crop is resized. The reference has bicubic, which the recipe `mae_images` takes."""
    flip: bool = True
    """Mirror half of the images; not for digits or text."""


class MAE(Objective):
    """Mean over masked patches of the squared error to the patch's normalised values, on any grid of patches."""

    Config = MAEConfig
    hides = "most patches of an image"
    needs: ClassVar[Mapping[str, str]] = {"dropped": "MAE drops patches"}
    alternatives = ("simmim", "autoencoder")
    encoder: PatchEncoder

    def __init__(self, config: MAEConfig, encoder: PatchEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not 0 < config.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio={config.mask_ratio}: must lie between 0 and 1")
        if self.count_visible(encoder.num_patches) < 1:
            raise UserError(
                f"objective.mask_ratio={config.mask_ratio}: leaves none of {encoder.num_patches} patches to see"
            )
        if isinstance(encoder, ImageEncoder):
            sizes, flip = encoder.config, 0.5 if config.flip else 0.0
            view = ViewConfig(
                crop_scale=config.crop_scale, interpolation=config.crop_interpolation, flip=flip
            )
            self.augmentation = Augmentation(image=Views(view, sizes.image_size, sizes.num_channels))
        self.roles["decoder"] = MAEDecoder(config, encoder)

    def count_visible(self, patches: int) -> int:
        """How many of a sample's patches the encoder sees."""
        return int(patches * (1 - self.config.mask_ratio))

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """A view, and "order" (N,): its patches in random order, the visible ones first."""
        view = self.random_view(sample, rng)
        return {**view, "order": rng.permutation(self.encoder.num_patches)}

    def random_view(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W)}: a crop, where samples are images; others as the encoder views them.

        On the host Pillow makes it, in bytes; on the device it is the same crop but for their rounding.
        """
        if not isinstance(self.encoder, ImageEncoder):
            return self.view(sample)
        image, config = self.encoder.image_of(sample), self.config
        size = self.encoder.config.image_size
        if self.augmentation and self.augment_config.on == "device":
            return self.augmentation.draw(image, rng)
        view = random_view(image, rng, size, config.crop_scale, config.crop_interpolation, config.flip)
        return {"image": view}

    def count_per_sample(self, phase: Phase) -> float:
        """Masked patches."""
        return float(self.encoder.num_patches - self.count_visible(self.encoder.num_patches))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        values = self.encoder.values(batch)  # (B, C, *sizes)
        prediction, ids_mask = self.predict(batch, self.encoder.grid_of(values))  # (B, M, P), (B, M)
        target = self.make_target(values)  # (B, N, P)
        target = target.gather(1, ids_mask.unsqueeze(-1).expand_as(prediction))
        return Loss((prediction.float() - target).pow(2).mean(-1).sum())

    def predict(self, batch: Batch, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The decoder's guess for every masked patch (B, M, P), and which patches those are (B, M)."""
        number = batch["order"].shape[1]
        visible = self.count_visible(number)
        ids_keep, ids_mask = batch["order"].split([visible, number - visible], dim=1)
        tokens = self.roles["encoder"](batch, ids_keep=ids_keep)  # (B, lead + K, D)
        return self.roles["decoder"](tokens, ids_keep, ids_mask, grid), ids_mask

    def make_target(self, values: Tensor) -> Tensor:
        """Values (B, C, *sizes) → the patches to paint (B, N, P)."""
        patches = self.encoder.patchify(values)
        if not self.config.normalize_target:
            return patches
        mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (var + 1e-6).sqrt()

    def picture(self, batch: Batch) -> Picture:
        """Original, what the encoder saw, and the painting: guesses brought back to the patch's own mean and variance.

        Showing normalised guesses as they are looks like noise (mae #95, #174).
        """
        encoder, values = self.encoder, self.encoder.values(batch)
        grid = encoder.grid_of(values)
        guess, ids_mask = self.predict(batch, grid)
        index = ids_mask.unsqueeze(-1).expand_as(guess)
        patches = encoder.patchify(values)  # (B, N, P)
        truth = patches.gather(1, index)
        guess = guess.float()
        if self.config.normalize_target:
            guess = guess * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
        painted = encoder.displayable(encoder.unpatchify(patches.scatter(1, index, guess), grid))
        hidden = encoder.unpatchify(torch.zeros_like(patches).scatter(1, index, 1.0), grid)
        original = encoder.displayable(values)
        visible = original.lerp(hidden * 0.5, hidden)
        return encoder.draw({"original": original, "visible": visible, "reconstruction": painted})


class MAEDecoder(nn.Module):
    """A narrow ViT over visible tokens and mask tokens, used only in pretraining."""

    positions: Tensor

    def __init__(self, config: MAEConfig, encoder: PatchEncoder) -> None:
        super().__init__()
        from transformers.models.vit.modeling_vit import ViTLayer

        sizes = hf_config(
            ViTEncoderConfig(
                hidden_size=config.decoder_hidden_size,
                num_hidden_layers=config.decoder_num_hidden_layers,
                num_attention_heads=config.decoder_num_attention_heads,
            )
        )
        dim = config.decoder_hidden_size
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.grid, self.lead = encoder.grid, encoder.lead
        self.register_buffer("positions", sincos_positions(encoder.grid, dim), persistent=False)  # (N, d)
        self.layers = nn.ModuleList([ViTLayer(sizes) for _ in range(config.decoder_num_hidden_layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, encoder.patch_values)
        self.apply(xavier_uniform)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, ids_keep: Tensor, ids_mask: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Visible tokens (B, lead + K, D), their patches (B, K), the masked patches (B, M) → values (B, M, P).

        Attention has no order of its own, so tokens stay in shuffled order and only their positions are looked up.
        """
        positions = interpolate_positions(self.positions, self.grid, grid)  # (N, d)
        x = self.embed(tokens)  # (B, lead + K, d)
        visible = x[:, self.lead :] + positions[ids_keep]
        hidden = self.mask_token + positions[ids_mask]  # (B, M, d)
        x = torch.cat([x[:, : self.lead], visible, hidden.to(x.dtype)], dim=1)  # (B, lead + N, d)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, -ids_mask.shape[1] :]))  # (B, M, P)
