"""Classification: an objective whose question is a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config.schema import Share
from pretrain.evaluation.probes import fit_linear
from pretrain.objectives.base import Batch, Loss, Objective, Phase

if TYPE_CHECKING:
    from finetune.labels import Labelled
    from pretrain.encoders.base import Encoder


@dataclass(frozen=True)
class ClassificationConfig:
    """What a task says beside its optimizer."""

    name: str = "classification"
    pooling: str | None = None
    """One vector a sample, as the encoder knows it (`mean`, `cls`, …); default: the encoder's own choice."""
    label_smoothing: Share = 0.0
    head_norm: bool = False
    """Normalise the pooled vector (LayerNorm) before the linear head, as MAE's fine-tuning does after mean pooling."""
    head_init: Literal["zero", "normal", "probe"] = "zero"
    """`normal`: N(0, .02²); `probe`: the linear probe's solution on the training samples, so that few steps are not
    spent on finding it and do not distort the encoder meanwhile (LP-FT, Kumar et al. 2022, arXiv:2202.10054)."""


class Classification(Objective):
    """Cross-entropy of a linear head on the pooled tokens; the encoder trains along."""

    Config = ClassificationConfig
    modality: ClassVar[str]
    """Of the encoders that can learn it; also the field that its samples must have."""
    auto_model: ClassVar[str]
    """The class of `transformers` that opens such classifiers."""
    dataset: Any

    def __init__(self, config: Any, encoder: Encoder, dataset: Labelled) -> None:
        super().__init__(config, encoder, dataset)  # type: ignore[arg-type]
        self.roles["head"] = Head(encoder.dim, len(dataset.classes), config)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """The augmented sample and its class."""
        return {**self.augment(self.encoder.view(sample), rng), "class": self.dataset.number(sample)}

    def augment(self, view: Batch, rng: np.random.Generator) -> Batch:
        """A view that belongs to the same class."""
        return view

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        logits = self.logits(batch).float()  # (B, classes)
        target = batch["class"]
        correct = (logits.detach().argmax(1) == target).sum()
        return Loss(self.cross_entropy(logits, batch), {"accuracy": correct})

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Summed over samples: (B, classes) → a scalar."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits, batch["class"], reduction="sum", label_smoothing=smoothing)

    def logits(self, batch: Batch) -> Tensor:
        """(B, classes)."""
        encoder = self.roles["encoder"]
        return self.roles["head"](self.encoder.pool(encoder(batch), batch))


class Head(nn.Module):
    """Pooled vectors (B, D) → logits (B, classes)."""

    def __init__(self, dim: int, classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6) if config.head_norm else nn.Identity()
        self.linear = nn.Linear(dim, classes)
        nn.init.zeros_(self.linear.bias)
        if config.head_init == "normal":
            nn.init.normal_(self.linear.weight, std=0.02)
        else:
            nn.init.zeros_(self.linear.weight)

    @torch.no_grad()
    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Become the linear probe on pooled features (N, D) with the class numbers `labels` (N,)."""
        weight, bias = fit_linear(self.norm(pooled), labels, self.linear.out_features)
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.norm(pooled))
