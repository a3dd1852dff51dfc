"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an image attract, all other images of the batch repel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from pretrain.augment.config import Hue, ViewConfig
from pretrain.config.schema import Share
from pretrain.objectives.base import Batch, Loss, Phase
from pretrain.objectives.projector import Norm, Projector
from pretrain.objectives.view_pairs import ViewPairs
from pretrain.ops.widen import widen
from pretrain.ops.world import World

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class SimCLRViewConfig(ViewConfig):
    """Appendix A of the paper."""

    jitter: Share = 0.8
    brightness: NonNegativeFloat = 0.8
    contrast: NonNegativeFloat = 0.8
    saturation: NonNegativeFloat = 0.8
    hue: Hue = 0.2
    grey: Share = 0.2
    blur: Share = 0.5


@dataclass(frozen=True)
class SimCLRConfig:
    name: str = "simclr"
    temperature: PositiveFloat = 0.2
    """0.1 in the paper's longest runs on ImageNet, 0.5 on CIFAR-10."""
    projection_sizes: tuple[PositiveInt, ...] = (2048, 128)
    """Widths of the projection head's layers."""
    projection_norm: Norm = "batch"
    views: SimCLRViewConfig = SimCLRViewConfig()


class SimCLR(ViewPairs):
    """NT-Xent over all views of the micro-batches of all ranks together."""

    Config = SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles["projector"] = Projector(encoder.dim, config.projection_sizes, config.projection_norm)

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        views = {"image": batch["views"].flatten(0, 1)}  # (2B, C, S, S): an image's two views are neighbours
        pooled = self.encoder.pool(self.roles["encoder"](views), views)  # (2B, D)
        projected = widen(self.roles["projector"](pooled, self.world.sum))  # (2B, d)
        errors, found = nt_xent(projected, self.config.temperature, self.world)  # (2B,), (2B,)
        return Loss(errors.sum() / 2, {"accuracy": found.sum() / 2})


def nt_xent(projected: Tensor, temperature: float, world: World) -> tuple[Tensor, Tensor]:
    """Cross-entropy of telling each view's partner from all other views of all ranks, by cosine.

    Args:
        projected: (2B, d) of this rank; 2i and 2i + 1 are partners.
    Returns:
        Of this rank's views (2B,) the errors, and 1 where the partner is the nearest.
    """
    own = F.normalize(projected, dim=1)
    everyone = world.gather(own)  # (ranks · 2B, d)
    place = torch.arange(len(own), device=own.device)
    itself = (world.rank * len(own) + place).unsqueeze(1)  # (2B, 1)
    logits = (own @ everyone.T / temperature).scatter(1, itself, float("-inf"))  # (2B, ranks · 2B)
    partner = world.rank * len(own) + (place ^ 1)
    return F.cross_entropy(logits, partner, reduction="none"), logits.detach().argmax(1) == partner
