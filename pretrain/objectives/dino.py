"""DINO (Caron et al. 2021, arXiv:2104.14294): from any crop of an image, say what a teacher says of its large crops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.augment.config import ViewConfig
from pretrain.augment.views import Augmentation, Views
from pretrain.config.schema import Range, Share
from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.image.mlp import MLPEncoder
from pretrain.encoders.patches import PatchEncoder
from pretrain.objectives.base import Batch, Encoded, Loss, Objective, Phase
from pretrain.objectives.dino_head import Centre, DINOHead, sinkhorn
from pretrain.objectives.teacher import cosine_to_one, follow_students, make_teacher
from pretrain.ops.widen import widen
from pretrain.tracking.pictures import ImageGrid

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

LARGE = ("first", "second")
"""The two large crops; the teacher sees no others."""


@dataclass(frozen=True)
class FirstCropConfig(ViewConfig):
    """Of the reference's first large crop (main_dino.py, DataAugmentationDINO)."""

    crop_scale: Range = (0.4, 1.0)
    jitter: Share = 0.8
    saturation: NonNegativeFloat = 0.2
    grey: Share = 0.2
    blur: Share = 1.0


@dataclass(frozen=True)
class SecondCropConfig(FirstCropConfig):
    """Of its second large crop."""

    blur: Share = 0.1
    solarise: Share = 0.2


@dataclass(frozen=True)
class SmallCropConfig(FirstCropConfig):
    """Of its small ones."""

    crop_scale: Range = (0.05, 0.4)
    blur: Share = 0.5


@dataclass(frozen=True)
class DINOConfig:
    """Defaults of the reference (main_dino.py); what it gives in epochs is a share of the run here."""

    name: str = "dino"
    small_crops: NonNegativeInt = 8
    small_size: PositiveInt = 96
    """Of a small crop, in pixels."""
    first_crop: FirstCropConfig = FirstCropConfig()
    second_crop: SecondCropConfig = SecondCropConfig()
    small_crop: SmallCropConfig = SmallCropConfig()
    prototypes: PositiveInt = 65536
    """Outputs of the head, K."""
    head_hidden_size: PositiveInt = 2048
    head_bottleneck_size: PositiveInt = 256
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.07
    warmup_teacher_temperature: PositiveFloat = 0.04
    """Where the teacher's temperature starts."""
    teacher_temperature_warmup_ratio: Share = 0.3
    """Share of the run in which it gets from there to `teacher_temperature`, along a line."""
    balance: Literal["centring", "sinkhorn"] = "centring"
    """What keeps the teacher from saying the same of all images: its mean output is subtracted, or its answers are
    spread evenly over prototypes (three rounds of Sinkhorn and Knopp, as DINOv2 does)."""
    centre_momentum: Share = 0.9
    teacher_momentum: Share = 0.996
    """Of the teacher's moving average, at the start; it rises along a cosine to 1."""
    freeze_last_layer_ratio: Share = 0.01
    """Share of the run in which the head's last layer stays as it is."""


class DINO(Objective):
    """Cross-entropy of the student's answer to each crop and the teacher's to each other, large one."""

    Config = DINOConfig
    hides = "what a teacher says of other crops"
    needs: ClassVar[Mapping[str, str]] = {"images": "DINO compares crops of images"}
    product = "teacher"
    encoder: ImageEncoder
    augmentation: Augmentation

    def __init__(self, config: DINOConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.couples_samples = config.balance == "sinkhorn"
        size, channels = encoder.config.image_size, encoder.config.num_channels
        crops = {
            "first": Views(config.first_crop, size, channels, place="first_crop"),
            "second": Views(config.second_crop, size, channels, place="second_crop"),
        }
        if config.small_crops:
            check_small_size(config.small_size, encoder)
            crops["small"] = Views(
                config.small_crop, config.small_size, channels, config.small_crops, place="small_crop"
            )
        self.augmentation = Augmentation(**crops)
        head = DINOHead(encoder.dim, config.head_hidden_size, config.head_bottleneck_size, config.prototypes)
        self.roles["head"] = head
        self.roles["teacher"], self.roles["teacher_head"] = make_teacher(encoder), make_teacher(head)
        self.roles["centre"] = Centre(config.prototypes)
        self.begin_step(0, 1)

    def phases(self) -> list[Phase]:
        return [Phase("train", trains=("encoder", "head"))]

    def begin_step(self, step: int, total_steps: int) -> None:
        config, progress = self.config, step / total_steps
        self.momentum = cosine_to_one(config.teacher_momentum, step, total_steps)
        warmup = config.teacher_temperature_warmup_ratio
        warmed = min(1.0, progress / warmup) if warmup else 1.0
        start, end = config.warmup_teacher_temperature, config.teacher_temperature
        self.temperature = start + (end - start) * warmed
        self.is_last_layer_frozen = progress < config.freeze_last_layer_ratio

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """Crops "first" and "second" (C, S, S) and "small" (n, C, s, s), to be made."""
        return self.augmentation.draw(self.encoder.image_of(sample), rng)

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        large = torch.cat([batch[name] for name in LARGE])  # (2B, C, S, S)
        pooled = [self.see("encoder", large).pooled]  # (2B, D)
        if "small" in batch:
            pooled.append(self.see("encoder", batch["small"].transpose(0, 1).flatten(0, 1)).pooled)  # (nB, D)
        answers = self.roles["head"](torch.cat(pooled), self.is_last_layer_frozen)  # ((2 + n)B, K)
        with torch.no_grad():
            truth = self.balance(self.roles["teacher_head"](self.see("teacher", large).pooled))  # (2B, K)
        batch_size = len(batch[LARGE[0]])
        answers = (widen(answers) / self.config.student_temperature).unflatten(0, (-1, batch_size))
        truth = truth.unflatten(0, (-1, batch_size))  # (2, B, K)
        entropy = torch.special.entr(truth).sum() / len(LARGE)
        return Loss(cross_entropy(truth, answers).sum(), {"teacher_entropy": entropy})

    def see(self, role: str, images: Tensor) -> Encoded:
        """What an encoder among the roles makes of images of one size."""
        encoder: Any = self.roles[role]
        batch = {"image": images}
        tokens = encoder(batch)
        return Encoded(tokens, encoder.pool(tokens, batch))

    def balance(self, logits: Tensor) -> Tensor:
        """The teacher's logits (2B, K) → its answers, each a distribution over prototypes."""
        if self.config.balance == "sinkhorn":
            return sinkhorn(widen(logits), self.temperature, self.world)
        return F.softmax(self.roles["centre"](widen(logits)) / self.temperature, dim=1)

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Let the teacher follow, and the centre."""
        pairs = [("teacher", "encoder"), ("teacher_head", "head")]
        follow_students(self.roles, pairs, self.momentum, skipped)
        centre: Any = self.roles["centre"]
        centre.follow(self.world, self.config.centre_momentum, skipped)

    def picture(self, batch: Batch) -> ImageGrid:
        """The large crops, a small one, and where in the first one the teacher's tokens are like its pooled vector."""
        rows = {f"{name} crop": batch[name] for name in LARGE}
        if "small" in batch:
            rows["a small one"] = batch["small"][:, 0]
        seen = self.see("teacher", batch["first"])
        return ImageGrid({**rows, "teacher looks at": draw_likeness(seen, batch["first"])})


def check_small_size(size: int, encoder: Any) -> None:
    """Raise a `UserError` where an encoder does not take crops of that size beside its own."""
    if isinstance(encoder, MLPEncoder):
        raise UserError(
            f"encoder.name={encoder.config.name!r}: sees images of one size; set objective.small_crops=0, or use "
            "encoder.name=vit"
        )
    if isinstance(encoder, PatchEncoder) and any(size % side for side in encoder.patch):
        raise UserError(
            f"objective.small_size={size}: must be a multiple of {encoder.patch[0]}, the encoder's patch"
        )


def cross_entropy(truth: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy over pairs of different crops: truth (T, B, K), logits (V, B, K) of those and more → (B,)."""
    log_p = F.log_softmax(logits, dim=2)
    number = len(truth)
    all_pairs = (truth.sum(0) * log_p.sum(0)).sum(1)  # (B,)
    own_pairs = (truth * log_p[:number]).sum((0, 2))  # (B,)
    return (own_pairs - all_pairs) / (number * len(logits) - number)


def draw_likeness(seen: Encoded, images: Tensor) -> Tensor:
    """Cosine of each place's token with the pooled vector, black to white within each image: (B, 1, H, W).

    Whole where the last tokens make a square grid, as those of patches and feature maps do.
    """
    likeness = F.cosine_similarity(seen.tokens.float(), seen.pooled.float().unsqueeze(1), dim=2)  # (B, N)
    side = math.isqrt(likeness.shape[1])
    grid = likeness[:, -side * side :].view(-1, 1, side, side)
    low, high = grid.amin((2, 3), keepdim=True), grid.amax((2, 3), keepdim=True)
    return F.interpolate((grid - low) / (high - low).clamp(min=1e-6), size=images.shape[2:])
