"""Attribute prediction: answer simple questions about a sample, some of which nobody had to label.

Each attribute's answer is either a field of the sample (`label`, `json.party`) or derived from the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.objectives.attribute_answers import AttributeSpec, answer, find_answers
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.derived_attributes import ROTATIONS, rotate

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


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
        rows, columns = getattr(encoder, "sizes", (0, 0))
        if self.rotates and rows != columns:
            raise UserError(
                f"encoder.image_size=[{rows}, {columns}]: an image that is not square fits no more once it is turned; "
                "make it square, or leave out the attribute that derives rotation"
            )
        self.answers = find_answers(self.specs, dataset)
        self.roles["heads"] = Heads(encoder.dim, {name: self.answers[name].outputs for name in self.specs})

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """The whole sample, and for each attribute `name` three numbers under names that no encoder has.

        "answer/name", "valid/name" (1 where there is one), and "unknown/name" (1 where there is one that no head
        knows, such as a class that is in no list).
        """
        turns = int(rng.integers(ROTATIONS)) if self.rotates else 0
        view = self.view(sample)
        if turns:
            view["image"] = rotate(view["image"], turns)
        for name, spec in self.specs.items():
            value = turns if spec.derive == "rotation" else answer(sample, spec)
            number = self.answers[name].number(value)
            view[f"answer/{name}"] = float(number or 0)
            view[f"valid/{name}"] = float(number is not None)
            view[f"unknown/{name}"] = float(number is None and value is not None)
        return view

    def count(self, phase: Phase, batch: Batch) -> float:
        """Valid answers, over all attributes."""
        return float(sum(batch[f"valid/{name}"].sum() for name in self.specs))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        pooled = self.encoder.pool(self.roles["encoder"](batch), batch)  # (B, D)
        outputs = self.roles["heads"](pooled)
        total, metrics = pooled.new_zeros((), dtype=torch.float32), {}
        for name, spec in self.specs.items():
            output = outputs[name].float()  # (B, classes) or (B, 1)
            valid, unknown = batch[f"valid/{name}"], batch[f"unknown/{name}"]  # (B,), (B,)
            error, score = judge(output, batch[f"answer/{name}"], spec.kind)  # (B,), (B,)
            total = total + spec.weight * (error * valid).sum()
            metrics[f"{name}_{'error' if spec.kind == 'number' else 'accuracy'}"] = (
                (score * valid).sum().detach(),
                valid.sum(),
            )
            if spec.field:
                metrics[f"{name}_unknown"] = (unknown.sum(), torch.ones_like(unknown).sum())
        return Loss(total, metrics)

    def describe_supervision(self) -> str:
        labels = [spec.field for spec in self.specs.values() if spec.field]
        return f"with the labels {', '.join(labels)}" if labels else super().describe_supervision()


class Heads(nn.Module):
    """A linear layer for each attribute."""

    def __init__(self, dim: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(dim, number) for name, number in outputs.items()})

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """(B, D) → by attribute (B, classes), or (B, 1)."""
        return {name: layer(pooled) for name, layer in self.layers.items()}


def check(name: str, spec: AttributeSpec, modality: str) -> None:
    place = f"objective.attributes.{name}"
    if not name.isidentifier():
        raise UserError(f"{place}: an attribute's name is letters, digits and underscores")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(
            f"{place}: torch has this name for something else; call the attribute e.g. its_{name} and give "
            f"field: {spec.field}"
        )
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


def judge(output: Tensor, target: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Errors (B,) for the loss, and scores (B,) for people: right or wrong, or the absolute error."""
    if kind == "classes":
        return F.cross_entropy(output, target.long(), reduction="none"), (output.argmax(1) == target).float()
    output = output.squeeze(1)
    if kind == "binary":
        error = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return error, ((output > 0) == (target > 0.5)).float()
    return (output - target).pow(2), (output - target).abs()
