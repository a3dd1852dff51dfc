"""Masked autoencoder (He et al. 2021, arXiv:2111.06377): see a few patches, paint the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.augment.image import Interpolation, center_view, random_resized_crop
from pretrain.encoders.base import field
from pretrain.encoders.image.base import image_to_array
from pretrain.encoders.image.vit import ViTEncoder, hf_config, xavier_uniform
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.ops.positions import sincos_2d
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset import Dataset


@dataclass(frozen=True)
class MAEConfig:
    """Defaults of the reference (main_pretrain.py, models_mae.py), but for `crop_interpolation`."""

    name: str = "mae"
    mask_ratio: float = 0.75
    normalize_target: bool = True
    """Each patch's target has zero mean and unit variance."""
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random crop; (1, 1) takes the whole image."""
    crop_interpolation: Interpolation = "bilinear"
    """How the crop is resized. The reference has bicubic, which the recipe `mae_images` takes."""
    flip: bool = True
    """Mirror half of the images; not for digits or text."""


class MAE(Objective):
    """Mean over masked patches of the squared error to the patch's normalised pixels."""

    Config = MAEConfig
    encoder: ViTEncoder

    def __init__(self, config: MAEConfig, encoder: ViTEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not isinstance(encoder, ViTEncoder):
            raise UserError(
                f"encoder.name={encoder.config.name!r}: MAE drops patches, so it needs encoder.name=vit"
            )
        if not 0 < config.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio={config.mask_ratio}: must lie between 0 and 1")
        if self.visible < 1:
            raise UserError(
                f"objective.mask_ratio={config.mask_ratio}: leaves none of {encoder.num_patches} patches to see"
            )
        self.roles["decoder"] = MAEDecoder(config, encoder)

    @property
    def visible(self) -> int:
        """Patches that the encoder sees."""
        return int(self.encoder.num_patches * (1 - self.config.mask_ratio))

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, S, S), "order": (N,)}: a crop, and its patches in random order, the visible ones first."""
        size = self.encoder.config.image_size
        image = image_to_array(field(sample, "image"), self.encoder.config.num_channels, sample["__key__"])
        if tuple(self.config.crop_scale) == (1, 1):
            view = center_view(image, size, self.config.crop_interpolation)
        else:
            view = random_resized_crop(
                image, rng, size, self.config.crop_scale, interpolation=self.config.crop_interpolation
            )
        if self.config.flip and rng.random() < 0.5:
            view = np.ascontiguousarray(view[:, :, ::-1])
        return {"image": view, "order": rng.permutation(self.encoder.num_patches)}

    def count_per_sample(self, phase: Phase) -> float:
        """Masked patches."""
        return float(self.encoder.num_patches - self.visible)

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        prediction, ids_mask = self.predict(batch)  # (B, M, p²C), (B, M)
        target = self.target(self.encoder.pixels(batch["image"]))  # (B, N, p²C)
        target = target.gather(1, ids_mask.unsqueeze(-1).expand_as(prediction))
        return Loss((prediction.float() - target).pow(2).mean(-1).sum())

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The decoder's guess for every masked patch (B, M, p²C), and which patches those are (B, M)."""
        ids_keep, ids_mask = batch["order"].split(
            [self.visible, self.encoder.num_patches - self.visible], dim=1
        )
        tokens = self.roles["encoder"](batch, ids_keep=ids_keep)  # (B, 1 + K, D)
        return self.roles["decoder"](tokens, ids_keep, ids_mask), ids_mask

    def target(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) → the patches to paint (B, N, p²C)."""
        patches = patchify(pixels, self.encoder.config.patch_size)
        if not self.config.normalize_target:
            return patches
        mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (var + 1e-6).sqrt()

    def picture(self, batch: Batch) -> ImageGrid:
        """Original, what the encoder saw, and the painting: guesses brought back to the patch's own mean and variance.

        Showing normalised guesses as they are looks like noise (mae #95, #174).
        """
        p = self.encoder.config.patch_size
        pixels = self.encoder.pixels(batch["image"])
        guess, ids_mask = self.predict(batch)
        index = ids_mask.unsqueeze(-1).expand_as(guess)
        patches = patchify(pixels, p)  # (B, N, p²C)
        truth = patches.gather(1, index)
        guess = guess.float()
        if self.config.normalize_target:
            guess = guess * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
        painted = self.encoder.displayable(unpatchify(patches.scatter(1, index, guess), p))
        hidden = unpatchify(torch.zeros_like(patches).scatter(1, index, 1.0), p)
        original = self.encoder.displayable(pixels)
        return ImageGrid(
            {"original": original, "visible": original.lerp(hidden * 0.5, hidden), "reconstruction": painted}
        )


class MAEDecoder(nn.Module):
    """A narrow ViT over visible tokens and mask tokens, used only in pretraining."""

    positions: Tensor

    def __init__(self, config: MAEConfig, encoder: ViTEncoder) -> None:
        super().__init__()
        from transformers.models.vit.modeling_vit import ViTLayer

        sizes = hf_config(
            encoder.Config(
                hidden_size=config.decoder_hidden_size,
                num_hidden_layers=config.decoder_num_hidden_layers,
                num_attention_heads=config.decoder_num_attention_heads,
            )
        )
        dim = config.decoder_hidden_size
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_2d(encoder.grid, dim), persistent=False)  # (N, d)
        self.layers = nn.ModuleList([ViTLayer(sizes) for _ in range(config.decoder_num_hidden_layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, encoder.config.patch_size**2 * encoder.config.num_channels)
        self.apply(xavier_uniform)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Visible tokens (B, 1 + K, D), their patches (B, K), the masked patches (B, M) → pixels (B, M, p²C).

        Attention has no order of its own, so tokens stay in shuffled order and only their positions are looked up.
        """
        x = self.embed(tokens)  # (B, 1 + K, d)
        visible = x[:, 1:] + self.positions[ids_keep]
        hidden = self.mask_token + self.positions[ids_mask]  # (B, M, d)
        x = torch.cat([x[:, :1], visible, hidden.to(x.dtype)], dim=1)  # (B, 1 + N, d)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, -ids_mask.shape[1] :]))  # (B, M, p²C)


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) → (B, N, p²C), channels last within a patch, as in the reference."""
    batch, channels, height, width = pixels.shape
    p = patch_size
    x = pixels.reshape(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify` for a square image: (B, N, p²C) → (B, C, H, W)."""
    batch, number, size = patches.shape
    p, grid = patch_size, round(number**0.5)
    x = patches.reshape(batch, grid, grid, p, p, size // p**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, grid * p, grid * p)
