"""What every objective is: it hides part of each sample, asks an encoder to fill it in, and scores the guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from data_tools.dataset import Dataset
    from pretrain.encoders.base import Encoder
    from pretrain.tracking.pictures import Picture

Batch = dict[str, Any]
"""A micro-batch: tensors by name, stacked by the loader from what `example` returned."""


@dataclass(frozen=True)
class Phase:
    """One update within a step: which roles it trains, with which optimizer (after StyleGAN3's training phases)."""

    name: str
    trains: tuple[str, ...]
    optimizer: str = "main"
    every: int = 1
    """Runs on the steps that this number divides (lazy regularisation: 16)."""
    fp32: bool = False
    """Leave autocast off in this phase (gradient penalties)."""


Metric = Tensor | tuple[Tensor, Tensor]
"""A detached scalar that sums over what the loss sums over, or a pair (sum, count) with a count of its own."""


@dataclass
class Loss:
    """The loss of one micro-batch, as a sum over the things that `Objective.count` counts."""

    sum: Tensor
    """Scalar, with its graph."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass
class Encoded:
    """What the encoder sees in whole samples: `tokens` (B, N, D) and `pooled` (B, D)."""

    tokens: Tensor
    pooled: Tensor


class Objective:
    """Base of all objectives: owns its decoder, predictor, discriminator or teacher; borrows an encoder.

    The trainer knows nothing about any method: it only walks `phases`. The engine wraps the roles of each optimizer
    apart from those of the others. `loss` and `encode` reach modules through `self.roles` and call them only through
    their `forward`, because that is what engines hook into.

    `count` stands apart from `loss` so that the trainer can sum it over all ranks and micro-batches *before* the first
    backward pass and scale every micro-batch exactly; averaging means instead is the bug of transformers #34191.
    """

    Config: ClassVar[type]
    is_likelihood: ClassVar[bool] = False
    """Whether the loss is a mean of −log p in nats, so that its exponential is a perplexity."""
    roles: dict[str, nn.Module]

    def __init__(self, config: Any, encoder: Encoder, dataset: Dataset) -> None:
        self.config = config
        self.encoder = encoder
        self.dataset = dataset
        self.roles = {"encoder": encoder}

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """One sample augmented and hidden, on the CPU; `rng` is seeded by (run seed, epoch, sample key) alone."""
        raise TypeError(f"{type(self).__name__} must define example()")

    def phases(self) -> list[Phase]:
        """The updates of a step, in order. By default one, which trains every role."""
        return [Phase("train", trains=tuple(self.roles))]

    def count(self, phase: Phase, batch: Batch) -> float:
        """How many things `loss` sums over in this micro-batch, read off the batch alone. By default its samples."""
        return float(len(next(value for value in batch.values() if isinstance(value, Tensor))))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        """The loss of a micro-batch, summed over `count` things."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def count_bytes(self, batch: Batch) -> float | None:
        """Bytes of the text that `loss` is the −log p of, for bits per byte; None where that is not known."""
        return None

    def after_step(self, phase: Phase, step: int) -> None:
        """Upkeep after a phase's optimizer has stepped: averaged weights, centres, codebooks."""

    def view(self, sample: dict[str, Any]) -> Batch:
        """One whole sample, nothing hidden and nothing random: what `encode` takes, stacked."""
        return self.encoder.view(sample)

    def encode(self, batch: Batch) -> Encoded:
        """See whole samples. Called on all ranks together, without gradients."""
        tokens = self.encoder(batch)  # (B, N, D)
        return Encoded(tokens, self.encoder.pool(tokens, batch))

    def picture(self, batch: Batch) -> Picture | None:
        """What was given, what was hidden and what was guessed, for people. Called on all ranks together."""
        return None


def stack(examples: list[Batch]) -> Batch:
    """Examples → a batch on the CPU, for the few places that need one outside the loader."""
    return {name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in examples[0]}
