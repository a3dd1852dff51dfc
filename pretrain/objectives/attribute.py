"""Attribute prediction: answer simple questions about a sample, some of which nobody had to label.

Each attribute's answer is either a field of the sample (`label`, `json.party`) or derived from the image or text, and
either one of the whole sample or, in texts, one of each word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.objectives.attribute_answers import (
    AttributeSpec,
    answer,
    find_answers,
    read_lexicon,
    words_of,
)
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.derived_attributes import CHANGES, DERIVED
from pretrain.objectives.words import NO_WORD, align

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class AttributeConfig:
    name: str = "attribute"
    attributes: dict[str, AttributeSpec] | None = None


class Attribute(Objective):
    """Σ over attributes of weight · valid · error, divided by the number of valid answers."""

    Config = AttributeConfig
    hides = "fields of the sample or of its words; colour, contrast, edges, rotation, jigsaw, word shapes …"
    encoder: Any

    def __init__(self, config: AttributeConfig, encoder: Any, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not config.attributes:
            raise UserError("objective.attributes: names no attribute; e.g. {party: {field: json.party}}")
        for name, spec in config.attributes.items():
            check(name, spec, encoder.modality)
        self.specs = config.attributes
        derived = {spec.derive for spec in self.specs.values()}
        self.changes = [name for name in CHANGES if name in derived]
        rows, columns = getattr(encoder, "sizes", (0, 0))
        if "rotation" in derived and rows != columns:
            raise UserError(
                f"encoder.image_size=[{rows}, {columns}]: an image that is not square fits no more once it is turned; "
                "make it square, or leave out the attribute that derives rotation"
            )
        self.answers = find_answers(self.specs, dataset)
        outputs = {name: self.answers[name].outputs for name in self.specs}
        of_words = {name for name, spec in self.specs.items() if spec.of_words}
        self.roles["heads"] = Heads(encoder.dim, outputs, of_words)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """The whole sample, and for each attribute `name` three numbers under names that no encoder has.

        "answer/name", "valid/name" (1 where there is one), and "unknown/name" (1 where there is one that no head
        knows, such as a class that is in no list); (L,) each where words are asked.
        """
        view = self.view(sample)
        changed = {}
        for which in self.changes:
            change, ways = CHANGES[which]
            changed[which] = int(rng.integers(ways))
            view["image"] = change(view["image"], changed[which])
        for name, spec in self.specs.items():
            value = changed[spec.derive] if spec.derive in changed else answer(sample, spec)
            numbers: Any = self.number(name, value)
            if spec.of_words:
                tokens = [self.number(name, one) for one in self.by_token(sample, spec, value)]
                numbers = np.array(tokens, dtype=np.float32).T  # (3, L)
            view |= dict(zip((f"answer/{name}", f"valid/{name}", f"unknown/{name}"), numbers, strict=True))
        return view

    def number(self, name: str, value: Any) -> tuple[float, float, float]:
        """An answer for the loss, whether it is valid, and whether no head knows it."""
        number = self.answers[name].number(value)
        return float(number or 0), float(number is not None), float(number is None and value is not None)

    def by_token(self, sample: dict[str, Any], spec: AttributeSpec, values: Any) -> list[Any]:
        """The answer of each token of a view, None for those that are not asked.

        Raises:
            UserError: there are more or fewer answers than words.
        """
        offsets = self.encoder.offsets_of(sample)  # (n, 2)
        spans = words_of(sample, spec)
        if isinstance(values, list) and len(values) != len(spans):
            raise UserError(
                f"sample {sample.get('__key__')!r}: {spec.field} has {len(values)} answers for {len(spans)} words; "
                "name the field that has the words (words), and write null where a word has no answer"
            )
        words = align(offsets, spans, spec.subwords)  # (n,)
        asked = [values[word] if word != NO_WORD and isinstance(values, list) else None for word in words]
        return asked + [None] * (self.encoder.config.max_length - len(asked))

    def count(self, phase: Phase, batch: Batch) -> float:
        """Valid answers, over all attributes."""
        return float(sum(batch[f"valid/{name}"].sum() for name in self.specs))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        tokens = self.roles["encoder"](batch)  # (B, N, D)
        pooled = self.encoder.pool(tokens, batch)  # (B, D)
        outputs = self.roles["heads"](pooled, tokens)
        total, metrics = pooled.new_zeros((), dtype=torch.float32), {}
        for name, spec in self.specs.items():
            # M = B samples, or their B · L tokens
            output = outputs[name].float().flatten(0, -2)  # (M, classes) or (M, 1)
            answers, valid, unknown = (
                batch[f"{part}/{name}"].flatten() for part in ("answer", "valid", "unknown")
            )  # (M,) each
            error, score = judge(output, answers, spec.kind)  # (M,), (M,)
            total = total + spec.weight * (error * valid).sum()
            metrics[f"{name}_{'error' if spec.kind == 'number' else 'accuracy'}"] = (
                (score * valid).sum().detach(),
                valid.sum(),
            )
            if spec.field:
                asked = valid + unknown if spec.of_words else torch.ones_like(unknown)
                metrics[f"{name}_unknown"] = (unknown.sum(), asked.sum())
        return Loss(total, metrics)

    def describe_supervision(self) -> str:
        labels = [spec.field for spec in self.specs.values() if spec.field]
        return f"with the labels {', '.join(labels)}" if labels else super().describe_supervision()


class Heads(nn.Module):
    """A linear layer for each attribute."""

    def __init__(self, dim: int, outputs: dict[str, int], of_words: set[str]) -> None:
        super().__init__()
        self.of_words = of_words
        self.layers = nn.ModuleDict({name: nn.Linear(dim, number) for name, number in outputs.items()})

    def forward(self, pooled: Tensor, tokens: Tensor | None = None) -> dict[str, Tensor]:
        """(B, D), (B, N, D) → by attribute (B, classes), or (B, N, classes) where words are asked; a number is one."""
        return {
            name: layer(tokens if name in self.of_words else pooled) for name, layer in self.layers.items()
        }


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
    check_words(place, spec, modality)
    if spec.derive is None:
        return
    derived = DERIVED.get(spec.derive)
    needed = derived.modality if derived else "image"
    if modality != needed:
        fitting = [name for name, one in DERIVED.items() if one.modality == modality]
        raise UserError(
            f"{place}.derive={spec.derive!r}: is computed of {needed}s; this encoder sees {modality}, of which there "
            f"are {', '.join(fitting) or 'none'}"
        )
    classes = len(derived.classes) if derived else CHANGES[spec.derive][1]
    if not classes and spec.kind != "number":
        raise UserError(f"{place}.kind={spec.kind!r}: {spec.derive} is a number; say kind: number")
    if classes and spec.kind != "classes":
        raise UserError(
            f"{place}.kind={spec.kind!r}: {spec.derive} is one of {classes} classes; say kind: classes"
        )


def check_words(place: str, spec: AttributeSpec, modality: str) -> None:
    """Raise a `UserError` for settings of words and lexicons that nothing would read, or that miss something."""
    if spec.of == "words" and (spec.derive or modality != "text"):
        raise UserError(f"{place}.of=words: is for a field of texts, with an answer for each word")
    if not spec.of_words and (spec.words or spec.subwords != "first"):
        unread = "words" if spec.words else "subwords"
        raise UserError(f"{place}.{unread}: is for answers of words; say of: words")
    if (spec.derive == "sentiment") != (spec.lexicon is not None):
        raise UserError(
            f"{place}.lexicon: sentiment needs one, a file with a word and its score in each line; nothing else does"
        )
    if spec.lexicon:
        read_lexicon(spec.lexicon)


def judge(output: Tensor, target: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Errors (B,) for the loss, and scores (B,) for people: right or wrong, or the absolute error."""
    if kind == "classes":
        return F.cross_entropy(output, target.long(), reduction="none"), (output.argmax(1) == target).float()
    output = output.squeeze(1)
    if kind == "binary":
        error = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return error, ((output > 0) == (target > 0.5)).float()
    return (output - target).pow(2), (output - target).abs()
