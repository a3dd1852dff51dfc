"""Attribute prediction: answer simple questions about a sample, some of which nobody had to label.

Each attribute's answer is either a field of the sample (`label`, `json.party`) or derived from the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.encoders.base import field
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.derived_attributes import DERIVED, ROTATIONS, rotate

if TYPE_CHECKING:
    from data_tools.dataset import Dataset

SCANNED = 2000
"""Samples, spread over the data set, that are looked at to learn an attribute's classes, or its mean and spread."""


@dataclass(frozen=True)
class AttributeSpec:
    """One question. Give `field` or `derive`."""

    field: str | None = None
    """Where the answer stands in the sample, e.g. `label`, or `json.color` for a key of its JSON member."""
    derive: Literal["brightness", "stroke_width", "rotation"] | None = None
    """What is computed from the image: mean ink, dominant stroke width, or the quarter turn it was given (RotNet)."""
    kind: Literal["classes", "binary", "number"] = "classes"
    """Cross-entropy, binary cross-entropy, or squared error of the standardised number."""
    classes: tuple[str | int | bool, ...] | None = None
    """The answers, in order; default: those found in the data set."""
    weight: float = 1.0


@dataclass(frozen=True)
class AttributeConfig:
    name: str = "attribute"
    attributes: dict[str, AttributeSpec] | None = None


class Attribute(Objective):
    """Σ over attributes of weight · valid · error, divided by the number of valid answers."""

    Config = AttributeConfig

    def __init__(self, config: AttributeConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not config.attributes:
            raise UserError("objective.attributes: names no attribute; e.g. {party: {field: json.party}}")
        for name, spec in config.attributes.items():
            check(name, spec, encoder.modality)
        self.specs = config.attributes
        self.rotates = any(spec.derive == "rotation" for spec in self.specs.values())
        self.answers = find_answers(self.specs, dataset)
        self.roles["heads"] = Heads(encoder.dim, {name: self.answers[name].outputs for name in self.specs})

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """The whole sample, and by attribute the answer "name" and whether it has one "name_valid" (0 or 1)."""
        turns = int(rng.integers(ROTATIONS)) if self.rotates else 0
        view = self.view(sample)
        if turns:
            view["image"] = rotate(view["image"], turns)
        for name, spec in self.specs.items():
            value = turns if spec.derive == "rotation" else answer(sample, spec)
            number = self.answers[name].number(value)
            view[f"{name}_valid"] = float(number is not None)
            view[name] = float(number or 0)
        return view

    def count(self, phase: Phase, batch: Batch) -> float:
        """Valid answers, over all attributes."""
        return float(sum(batch[f"{name}_valid"].sum() for name in self.specs))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        pooled = self.encoder.pool(self.roles["encoder"](batch), batch)  # (B, D)
        outputs = self.roles["heads"](pooled)
        total, metrics = pooled.new_zeros((), dtype=torch.float32), {}
        for name, spec in self.specs.items():
            output = outputs[name].float()  # (B, classes) or (B, 1)
            valid = batch[f"{name}_valid"]  # (B,)
            error, score = judge(output, batch[name], spec.kind)  # (B,), (B,)
            total = total + spec.weight * (error * valid).sum()
            metrics[f"{name}_{'error' if spec.kind == 'number' else 'accuracy'}"] = (
                (score * valid).sum().detach(),
                valid.sum(),
            )
        return Loss(total, metrics)


class Heads(nn.Module):
    """A linear layer for each attribute."""

    def __init__(self, dim: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(dim, number) for name, number in outputs.items()})

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """(B, D) → by attribute (B, classes), or (B, 1)."""
        return {name: layer(pooled) for name, layer in self.layers.items()}


@dataclass(frozen=True)
class Answers:
    """How an attribute's answers become numbers for the loss."""

    kind: str
    classes: dict[Any, int]
    mean: float = 0.0
    spread: float = 1.0

    @property
    def outputs(self) -> int:
        return len(self.classes) if self.kind == "classes" else 1

    def number(self, value: Any) -> float | None:
        """A class's index, 0 or 1, or the standardised number; None where there is no valid answer."""
        if value is None:
            return None
        if self.kind == "classes":
            return self.classes.get(value)
        if isinstance(value, (bool, int, float, np.number)):
            return float(bool(value)) if self.kind == "binary" else (float(value) - self.mean) / self.spread
        return None


def check(name: str, spec: AttributeSpec, modality: str) -> None:
    place = f"objective.attributes.{name}"
    if not name.isidentifier():
        raise UserError(f"{place}: an attribute's name is letters, digits and underscores")
    if (spec.field is None) == (spec.derive is None):
        raise UserError(f"{place}: give either field or derive")
    if spec.derive and modality != "image":
        raise UserError(
            f"{place}.derive={spec.derive!r}: is computed from images; this encoder sees {modality}"
        )
    if spec.derive and spec.derive != "rotation" and spec.kind != "number":
        raise UserError(f"{place}.kind={spec.kind!r}: {spec.derive} is a number; say kind: number")
    if spec.derive == "rotation" and spec.kind != "classes":
        raise UserError(
            f"{place}.kind={spec.kind!r}: rotation is one of {ROTATIONS} classes; say kind: classes"
        )


def answer(sample: dict[str, Any], spec: AttributeSpec) -> Any:
    """An attribute's value for a sample; None where the sample does not have the field."""
    if spec.derive:
        return DERIVED[spec.derive](field(sample, "image"))
    try:
        return field(sample, spec.field or "")
    except UserError:
        return None


def find_answers(specs: dict[str, AttributeSpec], dataset: Dataset) -> dict[str, Answers]:
    """What answers each attribute has, from its settings or from samples spread over the data set.

    Raises:
        UserError: an attribute that none of those samples has, or that has a single class.
    """
    found: dict[str, Answers] = {}
    unknown = {}
    for name, spec in specs.items():
        if spec.derive == "rotation":
            found[name] = Answers("classes", {turns: turns for turns in range(ROTATIONS)})
        elif spec.kind == "binary" or spec.classes:
            found[name] = Answers(spec.kind, {value: i for i, value in enumerate(spec.classes or ())})
        else:
            unknown[name] = spec
    if not unknown:
        return found
    values: dict[str, list[Any]] = {name: [] for name in unknown}
    for i in np.unique(np.linspace(0, len(dataset) - 1, SCANNED).astype(np.int64)):
        sample = dataset[int(i)]
        for name, spec in unknown.items():
            values[name].append(answer(sample, spec))
    return found | {name: learn_answers(name, spec, values[name]) for name, spec in unknown.items()}


def learn_answers(name: str, spec: AttributeSpec, values: list[Any]) -> Answers:
    """The classes, or the mean and spread, among `values`."""
    present = [value for value in values if value is not None]
    if not present:
        raise UserError(
            f"objective.attributes.{name}: no sample has the field {spec.field!r}; see `data show`"
        )
    if spec.kind == "number":
        if not all(isinstance(value, (bool, int, float, np.number)) for value in present):
            raise UserError(f"objective.attributes.{name}: {present[0]!r} is no number; say kind: classes")
        return Answers("number", {}, float(np.mean(present)), float(np.std(present)) or 1.0)
    classes = sorted(set(present), key=str)
    if len(classes) < 2:
        raise UserError(
            f"objective.attributes.{name}: every sample says {classes[0]!r}; there is nothing to learn"
        )
    return Answers("classes", {value: i for i, value in enumerate(classes)})


def judge(output: Tensor, target: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Errors (B,) for the loss, and scores (B,) for people: right or wrong, or the absolute error."""
    if kind == "classes":
        return F.cross_entropy(output, target.long(), reduction="none"), (output.argmax(1) == target).float()
    output = output.squeeze(1)
    if kind == "binary":
        error = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return error, ((output > 0) == (target > 0.5)).float()
    return (output - target).pow(2), (output - target).abs()
