"""VICReg (Bardes et al. 2021, arXiv:2105.04906): two views of an image agree, every feature varies, and no two features
say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import relu

from pretrain.augment.config import ViewConfig
from pretrain.config.schema import Share
from pretrain.objectives.base import Batch, Loss, Phase
from pretrain.objectives.projector import Norm, Projector
from pretrain.objectives.view_pairs import ViewPairs
from pretrain.ops.widen import widen

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

EPSILON = 1e-4
"""Within the standard deviation (main_vicreg.py)."""


@dataclass(frozen=True)
class VICRegViewConfig(ViewConfig):
    """BYOL's (arXiv:2006.07733, appendix B), the same for both views, as in the paper."""

    jitter: Share = 0.8
    saturation: NonNegativeFloat = 0.2
    grey: Share = 0.2
    blur: Share = 0.5
    solarise: Share = 0.1


@dataclass(frozen=True)
class VICRegConfig:
    name: str = "vicreg"
    invariance: NonNegativeFloat = 25.0
    variance: NonNegativeFloat = 25.0
    covariance: NonNegativeFloat = 1.0
    """Weights of the three terms."""
    expander_sizes: tuple[PositiveInt, ...] = (8192, 8192, 8192)
    expander_norm: Norm = "batch"
    views: VICRegViewConfig = VICRegViewConfig()


class VICReg(ViewPairs):
    """Variance and covariance are those of the micro-batches of all ranks together."""

    Config = VICRegConfig

    def __init__(self, config: VICRegConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles["expander"] = Projector(encoder.dim, config.expander_sizes, config.expander_norm)

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        # (2B, C, S, S): all first views first
        views = {"image": batch["views"].transpose(0, 1).flatten(0, 1)}
        pooled = self.encoder.pool(self.roles["encoder"](views), views)  # (2B, D)
        own = [widen(self.roles["expander"](half, self.world.sum)) for half in pooled.chunk(2)]  # (B, d) each
        one, two = (self.world.gather(half) for half in own)  # (ranks · B, d) each
        terms = {
            "invariance": (one - two).square().mean(),
            "variance": (variance_term(one) + variance_term(two)) / 2,
            "covariance": covariance_term(one) + covariance_term(two),
        }
        total = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
        # Every rank has the terms of all; its share of the sum is that of its samples.
        share = len(own[0])
        return Loss(total * share, {name: term.detach() * share for name, term in terms.items()})


def variance_term(x: Tensor) -> Tensor:
    """Mean over features of how far their standard deviation lies below 1: (N, d) → ()."""
    return relu(1 - (x.var(0) + EPSILON).sqrt()).mean()


def covariance_term(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different features, over their number: (N, d) → ()."""
    number, dim = x.shape
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (number - 1)  # (d, d)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim
