"""The held-out loss: the objective's own loss on samples that training does not see, exact on any number of ranks."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_tools.dataset.damage import Damage
from data_tools.errors import OneRankError, UserError, mistakes_of_one_rank
from data_tools.storage.objects import redacted
from data_tools.stream.loader import make_micro_batch
from data_tools.stream.mixed import Mixture
from pretrain.config.sections import Config
from pretrain.data import Sources, build_stream, open_validation
from pretrain.engine.base import Engine
from pretrain.evaluation.shares import share_batches
from pretrain.objectives.base import Batch, Metric, Objective, Phase, by_name

BYTES = "bytes"


class Validation:
    """Asks an objective the same questions every time.

    The samples are the first `validation.samples` positions of the data set's own stream (packed into rows as training
    packs them), without those that `python -m data_tools verify` marked; what is hidden in each depends on (seed,
    sample key) alone.
    """

    def __init__(self, config: Config, objective: Objective, sources: Sources) -> None:
        """Open the data.

        Raises:
            UserError: they are not there, are trained on, or have another tokenizer.
        """
        path = redacted(config.data.validation or "")
        held_out = replace(config, data=replace(config.data, path=path))
        self.path = path
        self.seed = config.seed
        stream = build_stream(held_out, {path: open_validation(config.data, sources)})
        assert not isinstance(stream, Mixture), "one path is named"
        self.stream = stream
        self.samples = min(config.validation.samples, self.stream.samples_per_epoch)
        self.train = config.train
        self.trained, self.mask_ratio = objective, config.validation.mask_ratio
        self.phases = [phase for phase in objective.phases() if not phase.fp32]
        """A gradient penalty says nothing of samples that are held out."""
        self.labelled = len(objective.phases()) > 1
        self.parts: dict[str, list[str]] = {}
        """By phase, the labels of the means that its loss is the sum of."""

    @property
    def objective(self) -> Objective:
        """As it is now, temperatures and all, at the mask ratio that is asked for."""
        return with_mask_ratio(self.trained, self.mask_ratio)

    def measure(self, engine: Engine) -> dict[str, float]:
        """The loss and the objective's metrics over all samples, the same on every rank. Called on all ranks together.

        A loss that is a mean of −log p comes with its `perplexity`, and with `bits_per_byte` where bytes are known.

        Raises:
            UserError: a sample is damaged; a loss over other samples than before could not be compared.
        """
        sums, counts = defaultdict[str, float](float), defaultdict[str, float](float)
        damages: list[Damage] = []
        torch.manual_seed(self.seed)
        world = engine.world
        batch_size = self.train.micro_batch_size or self.train.global_batch_size // world.size
        chosen = self.choose(batch_size * world.size)
        for which, is_counted in share_batches(len(chosen), batch_size, world.rank, world.size):
            positions = chosen[which]
            try:
                batch, _, damaged = make_micro_batch(
                    self.stream, self.objective.make_example, self.seed, positions, self.objective.collate
                )
            except UserError as error:
                raise OneRankError(f"data.validation: {error}") from None
            damages += [damage for damage in damaged if is_counted and not damage.known]
            for phase in self.phases:
                with mistakes_of_one_rank():
                    found = self.sum_phase(phase, batch, engine.device)
                for name, (value, count) in found.items():
                    sums[name] += value if is_counted else 0.0
                    counts[name] += count if is_counted else 0.0
        self.refuse_damage([damage for rank in engine.gather(damages) for damage in rank])
        names = list(sums)
        table = torch.tensor([[sums[n] for n in names], [counts[n] for n in names]], dtype=torch.float64)
        totals = dict(zip(names, engine.sum(table).T.tolist(), strict=True))
        return self.describe(totals)

    def choose(self, whole: int) -> NDArray[np.int64]:
        """The positions that are asked about; of samples that are coupled, as many as make batches of `whole`."""
        readable = self.stream.readable(np.arange(self.samples, dtype=np.int64))
        if not self.objective.couples_samples:
            return readable
        if len(readable) < whole:
            raise UserError(
                f"data.validation={self.path}: {len(readable)} samples (validation.samples={self.samples}) make no "
                f"batch of {whole}, over which {self.objective.config.name} has its loss; give more, or set "
                "validation.every=0"
            )
        return readable[: len(readable) // whole * whole]

    def sum_phase(self, phase: Phase, batch: Batch, device: torch.device) -> dict[str, tuple[float, float]]:
        """By label, (sum, count) of what a phase measures in one batch."""
        objective = self.objective
        counts, size = by_name(objective.count(phase, batch)), objective.count_bytes(batch)
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        loss = objective.loss(phase, objective.arrive(on_device))
        sums = by_name(loss.sum)
        values = {loss_label(name, sums): (float(value), counts[name]) for name, value in sums.items()}
        self.parts[phase.name] = [self.label(phase, name) for name in values]
        first = next(iter(counts.values()))
        values |= {name: pair_of(value, first) for name, value in loss.metrics.items()}
        if size is not None:
            values[BYTES] = (size, 1.0)
        return {self.label(phase, name): value for name, value in values.items()}

    def describe(self, totals: dict[str, list[float]]) -> dict[str, float]:
        """Means, and what else a loss in nats says."""
        means = {name: value / max(count, 1.0) for name, (value, count) in totals.items()}
        for phase in self.phases:
            loss, size = self.label(phase, "loss"), self.label(phase, BYTES)
            means.pop(size, None)
            means[loss] = sum(means[part] for part in self.parts[phase.name])
            if self.objective.is_likelihood:
                means[self.label(phase, "perplexity")] = math.exp(min(means[loss], 700.0))
            if size in totals and totals[size][0]:
                means[self.label(phase, "bits_per_byte")] = totals[loss][0] / math.log(2) / totals[size][0]
        return means

    def label(self, phase: Phase, name: str) -> str:
        return f"{phase.name}/{name}" if self.labelled else name

    def refuse_damage(self, damages: list[Damage]) -> None:
        if damages:
            first = damages[0]
            raise UserError(
                f"data.validation={self.path}: {len(damages)} of {self.samples} samples are damaged, e.g. {first.name} "
                f"in {first.shard} ({first.reason}); mend or leave them out: `python -m data_tools verify {self.path}`"
            )


def loss_names(config: Config, objective: Objective) -> list[str]:
    """What is measured on held-out samples whatever the objective; nothing where there are none."""
    if not (config.data.validation and config.validation.every):
        return []
    names = ["loss", *(["perplexity"] if objective.is_likelihood else [])]
    phases = objective.phases()
    labels = [f"{phase.name}/" for phase in phases if not phase.fp32] if len(phases) > 1 else [""]
    return [f"{label}{name}" for label in labels for name in names]


def loss_label(name: str, sums: Mapping[str, Tensor]) -> str:
    """As the trainer logs a part of the loss that has several."""
    return "loss" if len(sums) == 1 else f"{name}_loss"


def pair_of(value: Metric, count: float) -> tuple[float, float]:
    """A metric as (sum, count); one without a count of its own is over what the loss is over."""
    if isinstance(value, tuple):
        return float(value[0]), float(value[1])
    return float(value), count


def with_mask_ratio(objective: Objective, ratio: float | None) -> Objective:
    """The same objective, roles and all, that hides another share; itself where none is given."""
    if ratio is None:
        return objective
    other: Any = copy.copy(objective)
    other.config = replace(objective.config, mask_ratio=ratio)
    return other
