"""What every objective is: it hides part of each sample, asks an encoder to fill it in, and scores the guess."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.augment.config import AugmentConfig
from pretrain.augment.views import Augmentation
from pretrain.objectives.pairs import check_pair
from pretrain.ops.world import World

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset
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


T = TypeVar("T")
Counts = float | Mapping[str, float]
"""How many things a loss sums over; by name where it has several sums, each with a count of its own."""
Metric = Tensor | tuple[Tensor, Tensor]
"""A detached scalar that sums over what the loss sums over, or a pair (sum, count) with a count of its own."""


@dataclass
class Loss:
    """The loss of one micro-batch, as a sum over the things that `Objective.count` counts."""

    sum: Tensor | Mapping[str, Tensor]
    """Scalar, with its graph; or several by the names of `Objective.count`, each divided by its own count."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def by_name(value: T | Mapping[str, T]) -> dict[str, T]:
    """Counts or sums by name; a single one is called `loss`."""
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


@dataclass
class Encoded:
    """What the encoder sees in whole samples: `tokens` (B, N, D) and `pooled` (B, D)."""

    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Companion:
    """A whole `transformers` model, heads and all, that is released beside the product."""

    model: Any
    """With the weights that were trained."""
    logits: Callable[[Batch], Tensor]
    """What the roles give for whole samples, token by token (B, L, …): what the release must give too."""


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
    hides: ClassVar[str] = ""
    """What it hides, in a few words, for `python -m pretrain list`."""
    needs: ClassVar[Mapping[str, str]] = {}
    """What its encoder must give (`objectives/pairs.py`), each with the reason that an error tells."""
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Objectives that are like this one, for an encoder that does not give it; the nearest first."""
    roles: dict[str, nn.Module]
    product: ClassVar[str] = "encoder"
    """The role that is probed, released and fine-tuned: the encoder, its averaged teacher, another encoder."""
    world: World = World()
    """The other ranks, for losses over the global batch; a world of one until an engine prepares the objective."""
    augmentation: Augmentation | None = None
    """The views that `example` draws of images, if it does; a batch that `loss` gets has them made."""
    augment_config: AugmentConfig = AugmentConfig()
    """Where views are made; the run's, set when the objective has been built."""
    couples_samples: bool = False
    """Whether the loss of a sample depends on the others of its micro-batch on all ranks. Held-out losses then leave
    out what makes no whole batch."""
    initial_weights: Any = None
    """Those of roles that have shapes but no memory yet: an engine fills its shards with them."""

    def __init__(self, config: Any, encoder: Encoder, dataset: Dataset) -> None:
        check_pair(self, encoder)
        self.config = config
        self.encoder = encoder
        self.dataset = dataset
        self.roles = {"encoder": encoder}

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """One sample augmented (or its views drawn by `augmentation`) and hidden, on the CPU.

        `rng` is seeded by (run seed, epoch, sample key) alone.
        """
        raise TypeError(f"{type(self).__name__} must define example()")

    def make_example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """`example`, with the views made that it drew where that is the host's work: what loaders collate."""
        example = self.example(sample, rng)
        return self.augmentation.prepare(example, self.augment_config) if self.augmentation else example

    def collate(self, examples: list[Batch]) -> Batch:
        """Examples, or views, → a batch on the CPU. To be overridden where their lengths differ: pad or concatenate."""
        return self.encoder.collate(self.augmentation.pad(examples) if self.augmentation else examples)

    def arrive(self, batch: Batch) -> Batch:
        """A batch that has come to its device as `loss` and `picture` take it: with its views made."""
        return self.augmentation.make(batch) if self.augmentation else batch

    def without_networks(self) -> Objective:
        """A copy for `example` and `collate` in worker processes: small, and picklable.

        It has all other attributes; its encoder and other modules have theirs, but neither parameters, buffers nor
        submodules. Called before an engine prepares the objective.
        """
        return without_networks(self)

    def phases(self) -> list[Phase]:
        """The updates of a step, in order. By default one, which trains every role."""
        return [Phase("train", trains=tuple(self.roles))]

    def begin_step(self, step: int, total_steps: int) -> None:
        """Set what changes over the run (a temperature, a momentum) for the (0-based) step; called on all ranks.

        It comes before the phases of every step, and before the first pictures. What it sets depends on its arguments
        alone, so that a resumed run goes on as if nothing had been.
        """

    def count_per_sample(self, phase: Phase) -> Counts:
        """How many things `loss` sums over in each sample, where that is the same in all; by name for several sums.

        Ranks then need not be asked for their counts before the first backward pass.
        """
        return 1.0

    def count(self, phase: Phase, batch: Batch) -> Counts:
        """How many things `loss` sums over in this micro-batch, read off the batch alone; by name for several sums.

        Defined where samples differ in it; by default `count_per_sample` times the samples.
        """
        samples = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        counts = {
            name: float(count * samples) for name, count in by_name(self.count_per_sample(phase)).items()
        }
        return counts["loss"] if counts.keys() == {"loss"} else counts

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        """The loss of a micro-batch, summed over `count` things; by the same names where that has names."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def count_bytes(self, batch: Batch) -> float | None:
        """Bytes of the text that `loss` is the −log p of, for bits per byte; None where that is not known."""
        return None

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Upkeep after a phase's optimizer has stepped: averaged weights, centres, codebooks.

        Args:
            step: 0-based.
            skipped: 1 where the update was left out, for its gradient was not finite or a spike; else 0 (a scalar on
                the device). What is kept must then stay as it was: blend with it, as `ops.ema.update_ema` does, for
                reading it on the host would wait for the device.
        """

    def view(self, sample: dict[str, Any]) -> Batch:
        """One whole sample, nothing hidden and nothing random: what `encode` takes, stacked."""
        return self.product_encoder.view(sample)

    def encode(self, batch: Batch) -> Encoded:
        """See whole samples. Called on all ranks together, without gradients."""
        encoder = self.product_encoder
        tokens = encoder(batch)  # (B, N, D)
        return Encoded(tokens, encoder.pool(tokens, batch))

    @property
    def product_encoder(self) -> Encoder:
        """The encoder that a run is for."""
        return self.encoder if self.product == "encoder" else cast("Encoder", self.roles[self.product])

    def describe_supervision(self) -> str:
        """For the model card, after "pretrained": what told the encoder what is right."""
        return "without labels"

    def companions(self) -> dict[str, Companion]:
        """By the name of their folder in a release, what is released beside the product. One process."""
        return {}

    def picture(self, batch: Batch) -> Picture | None:
        """What was given, what was hidden and what was guessed, for people. Called on all ranks together."""
        return None


def without_networks(objective: Objective) -> Objective:
    """A shallow copy whose modules, in attributes and roles, are `hollow`; one that stands in two places stays one."""
    hollows = {id(module): hollow(module) for module in objective.roles.values()}

    def hollowed(value: Any) -> Any:
        return hollows.setdefault(id(value), hollow(value)) if isinstance(value, nn.Module) else value

    own = copy.copy(objective)
    own.__dict__ = {n: hollowed(v) for n, v in vars(objective).items() if not isinstance(v, nn.Parameter)}
    own.roles = {name: hollowed(role) for name, role in objective.roles.items()}
    own.initial_weights = None
    return own


def hollow(module: nn.Module) -> nn.Module:
    """A module of the same class with the same plain attributes, and no parameters, buffers, submodules or hooks."""
    empty = nn.Module()
    own: nn.Module = object.__new__(type(module))  # FSDP has a `__new__` of its own
    own.__dict__.update({**vars(module), **vars(empty), "training": module.training})
    own.__dict__.pop("_compiled_call_impl", None)
    return own


def stack(examples: list[Batch]) -> Batch:
    """Examples → a batch on the CPU, for the few places that need one outside the loader."""
    return {name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in examples[0]}
