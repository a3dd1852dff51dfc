"""I-JEPA (Assran et al. 2023, arXiv:2301.08243): from part of an image, predict what a teacher's encoder makes of the
rest; no pixel is painted and no augmentation is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.augment.config import ViewConfig
from pretrain.augment.views import Augmentation, Views
from pretrain.config.schema import Range, Share
from pretrain.encoders.image.vit import ViTEncoderConfig, hf_config
from pretrain.encoders.image.vit_like import xavier_uniform
from pretrain.encoders.patches import PatchEncoder
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.blocks_of_patches import BlockSizes, draw_with_context, usual_context
from pretrain.objectives.teacher import follow_students, linear_to_one, make_teacher
from pretrain.ops.attention import attention_mask
from pretrain.ops.positions import interpolate_positions, sincos_positions
from pretrain.ops.widen import widen

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset
    from pretrain.tracking.pictures import Picture

SQUARE = (1.0, 1.0)
DIM_SHARE = 0.25
"""How bright a picture shows what is hidden."""


@dataclass(frozen=True)
class IJEPAViewConfig(ViewConfig):
    """A crop and nothing else."""

    crop_scale: Range = (0.3, 1.0)
    flip: Share = 0.0


@dataclass(frozen=True)
class IJEPAConfig:
    """Defaults of the reference (configs/in1k_vith14_ep300.yaml), but for `context_patches`."""

    name: str = "ijepa"
    num_targets: PositiveInt = 4
    target_scale: Range = (0.15, 0.2)
    """Area of a target block, as a share of the grid."""
    target_aspect: Range = (0.75, 1.5)
    context_scale: Range = (0.85, 1.0)
    context_patches: PositiveInt | None = None
    """Patches of the context block that are seen, of those that are in no target. Default: a quarter of all. (The
    reference keeps as many as the batch's shortest context has: about .3 of 14 × 14.)"""
    predictor_hidden_size: PositiveInt = 384
    predictor_num_hidden_layers: PositiveInt = 12
    predictor_num_attention_heads: PositiveInt = 16
    teacher_momentum: Share = 0.996
    """Of the teacher's moving average, at the start; it rises along a line to 1."""
    view: IJEPAViewConfig = IJEPAViewConfig()


class IJEPA(Objective):
    """Smooth-L1 between predicted and layer-normalised teacher's tokens, averaged over blocks of patches."""

    Config = IJEPAConfig
    hides = "what a teacher's encoder makes of blocks of patches"
    needs: ClassVar[Mapping[str, str]] = {
        "images": "I-JEPA asks for blocks of images",
        "dropped": "I-JEPA drops the patches that it asks for",
    }
    alternatives = ("dino",)
    product = "teacher"
    augmentation: Augmentation
    encoder: Any
    """An encoder of images in patches."""

    def __init__(self, config: IJEPAConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if config.target_scale[1] > 1 or config.context_scale[1] > 1:
            raise UserError(
                "objective.target_scale, objective.context_scale: are shares of the image, at most 1"
            )
        self.target = BlockSizes(config.target_scale, config.target_aspect)
        self.context = BlockSizes(config.context_scale, SQUARE)
        self.most_asked = self.target.largest(encoder.grid)
        self.kept = config.context_patches or encoder.num_patches // 4
        usual = usual_context(encoder.grid, config.num_targets, self.target, self.context)
        if not 1 <= self.kept <= usual:
            raise UserError(
                f"objective.context_patches={self.kept}: of {encoder.num_patches} patches, half of all draws of "
                f"{config.num_targets} targets leave no more than {usual} of the context; give 1 to {usual}, or a "
                "smaller encoder.patch_size"
            )
        size, channels = encoder.config.image_size, encoder.config.num_channels
        self.augmentation = Augmentation(image=Views(config.view, size, channels, place="view"))
        self.roles["predictor"] = Predictor(config, encoder)
        self.roles["teacher"] = make_teacher(encoder)
        self.momentum = config.teacher_momentum

    def phases(self) -> list[Phase]:
        return [Phase("train", trains=("encoder", "predictor"))]

    def begin_step(self, step: int, total_steps: int) -> None:
        self.momentum = linear_to_one(self.config.teacher_momentum, step, total_steps)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """What the encoder sees and what is asked for: "context" (K,) and "targets" (T, M), of which "target_size" (1,)
        count; "image" (C, S, S) is to be made."""
        number = self.config.num_targets
        drawn = self.augmentation.draw(self.encoder.image_of(sample), rng)
        asked = draw_with_context(self.encoder.grid, rng, number, self.target, self.context, self.kept)
        size = asked.targets.shape[1]
        targets = np.zeros((number, self.most_asked), dtype=np.int64)  # (T, M)
        targets[:, :size] = asked.targets
        return {**drawn, "context": asked.left, "targets": targets, "target_size": np.array([size])}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        targets, valid = batch["targets"], valid_places(batch)  # (B, T, M), (B, T, M)
        tokens = self.roles["encoder"](batch, ids_keep=batch["context"])  # (B, lead + K, D)
        grid = self.encoder.grid_of(self.encoder.values(batch))
        guess = self.roles["predictor"](tokens, batch["context"], targets, valid, grid)  # (B, T, M, D)
        with torch.no_grad():
            truth = layer_norm(self.roles["teacher"](batch)[:, self.encoder.lead :])  # (B, N, D)
            truth = take(truth, targets)  # (B, T, M, D)
        error = F.smooth_l1_loss(widen(guess), truth, reduction="none").mean(-1)  # (B, T, M)
        by_block = (error * valid).sum(2) / valid.sum(2)  # (B, T)
        return Loss(by_block.mean(1).sum())

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Let the teacher follow."""
        follow_students(self.roles, [("teacher", "encoder")], self.momentum, skipped)

    def picture(self, batch: Batch) -> Picture:
        """The crop, what of it the encoder sees, and each block that is asked for."""
        encoder, values = self.encoder, self.encoder.values(batch)
        grid, original = encoder.grid_of(values), encoder.displayable(values)
        places, valid = batch["targets"], valid_places(batch)
        rows = {"image": original, "context": shade(encoder, original, grid, batch["context"])}
        for i in range(places.shape[1]):
            first = places[:, i, :1]
            block = torch.where(
                valid[:, i], places[:, i], first
            )  # padding says a patch of the block once more
            rows[f"target {i + 1}"] = shade(encoder, original, grid, block)
        return encoder.draw(rows)


class Predictor(nn.Module):
    """A narrow ViT that sees the context's tokens and, for one block at a time, a mask token for each patch of it."""

    positions: Tensor

    def __init__(self, config: IJEPAConfig, encoder: PatchEncoder) -> None:
        super().__init__()
        from transformers.models.vit.modeling_vit import ViTLayer

        dim = config.predictor_hidden_size
        sizes = hf_config(
            ViTEncoderConfig(
                hidden_size=dim,
                num_hidden_layers=config.predictor_num_hidden_layers,
                num_attention_heads=config.predictor_num_attention_heads,
            )
        )
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.grid, self.lead = encoder.grid, encoder.lead
        self.register_buffer("positions", sincos_positions(encoder.grid, dim), persistent=False)  # (N, d)
        self.layers = nn.ModuleList([ViTLayer(sizes) for _ in range(config.predictor_num_hidden_layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, encoder.dim)
        self.apply(xavier_uniform)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Tensor, context: Tensor, targets: Tensor, valid: Tensor, grid: tuple[int, ...]
    ) -> Tensor:
        """Context tokens (B, lead + K, D) of patches (B, K); target patches (B, T, M) → their tokens (B, T, M, D).

        Blocks do not see each other, and nothing sees what is not `valid` (B, T, M).
        """
        batch, number, size = targets.shape
        positions = interpolate_positions(self.positions, self.grid, grid)  # (N, d)
        seen = self.embed(tokens[:, self.lead :]) + positions[context]  # (B, K, d)
        seen = seen.repeat_interleave(number, 0)  # (B · T, K, d)
        asked = self.mask_token + positions[targets.flatten(0, 1)]  # (B · T, M, d)
        x = torch.cat([seen, asked.to(seen.dtype)], dim=1)  # (B · T, K + M, d)
        ones = torch.ones(len(seen), seen.shape[1], dtype=torch.long, device=x.device)
        documents = torch.cat([ones, valid.flatten(0, 1).long()], dim=1)  # (B · T, K + M); 0: padding
        first: Any = self.layers[0]
        backend = first.attention.config._attn_implementation
        mask = attention_mask({"document_ids": documents}, backend)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x[:, -size:])).view(batch, number, size, -1)


def valid_places(batch: Batch) -> Tensor:
    """Which of the `targets` (B, T, M) are no padding."""
    places = torch.arange(batch["targets"].shape[2], device=batch["targets"].device)
    return (places < batch["target_size"]).unsqueeze(1).expand_as(batch["targets"])


def layer_norm(tokens: Tensor) -> Tensor:
    """Zero mean and unit variance over the last axis, in at least fp32: what a target is."""
    return F.layer_norm(widen(tokens), tokens.shape[-1:])


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, N, D), (B, T, M) → (B, T, M, D)."""
    index = places.flatten(1).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, index).unflatten(1, places.shape[1:])


def shade(encoder: PatchEncoder, images: Tensor, grid: tuple[int, ...], shown: Tensor) -> Tensor:
    """Images (B, C, *sizes) in [0, 1] that are dark but for the patches `shown` (B, n)."""
    patches = encoder.patchify(images)  # (B, N, P)
    light = torch.full_like(patches, DIM_SHARE)
    light.scatter_(1, shown.unsqueeze(-1).expand(-1, -1, patches.shape[2]), 1.0)
    return encoder.unpatchify(patches * light, grid)
