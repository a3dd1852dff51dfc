"""Which answers an attribute has: as its settings say, as the data set's manifest says, or as a scan of it finds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import NonNegativeFloat

from data_tools.dataset.damage import DamagedSampleError
from data_tools.decode.kinds import kind_of
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.pixels import lay_on
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import cache_folder
from pretrain.encoders.base import field
from pretrain.objectives.derived_attributes import CHANGES, DERIVED
from pretrain.objectives.words import Span, find_words

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

log = logging.getLogger(__name__)
SCANNED = 2000
"""Samples, spread over the data set, that are looked at to learn a number's mean and spread."""


@dataclass(frozen=True)
class AttributeSpec:
    """One question. Give `field` or `derive`."""

    field: str | None = None
    """Where the answer stands in the sample, e.g. `label`, or `json.color` for a key of its JSON member."""
    derive: (
        Literal[
            "brightness", "contrast", "stroke_width", "dominant_colour", "edge_orientation", "rotation", "jigsaw",
            "sentence_length", "sentiment", "word_shape",
        ]
        | None
    ) = None  # fmt: skip
    """What is computed from the image or text; of `rotation` and `jigsaw`, which quarter turn or order of tiles the
    image was given."""
    of: Literal["sample", "words"] = "sample"
    """`words`: the field has a list, an answer (or null) for each word of the text."""
    words: str | None = None
    """With `of: words`: the field with the words, in the text's order. Default: what stands between white space."""
    subwords: Literal["first", "all"] = "first"
    """Which tokens of a word are asked."""
    lexicon: str | None = None
    """Of `sentiment`: a file with a word and its score in each line, separated by a tab, a comma or a space."""
    kind: Literal["classes", "binary", "number"] = "classes"
    """Cross-entropy, binary cross-entropy, or squared error of the standardised number."""
    classes: tuple[str | int | bool, ...] | None = None
    """The answers, in order; default: for `label` those that the manifest names, else all that the data set has."""
    weight: NonNegativeFloat = 1.0

    @property
    def of_words(self) -> bool:
        """Whether each word has an answer of its own."""
        return self.of == "words" or (self.derive in DERIVED and DERIVED[self.derive].of_words)


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
            return None if isinstance(value, (dict, list, np.ndarray)) else self.classes.get(value)
        if isinstance(value, (bool, int, float, np.number)):
            return float(bool(value)) if self.kind == "binary" else (float(value) - self.mean) / self.spread
        return None


def answer(sample: dict[str, Any], spec: AttributeSpec) -> Any:
    """An attribute's value for a sample, or a list of those of its words; None where there is none.

    Raises:
        IncompleteSampleError: what it is computed from is not there.
        UserError: an answer is NaN.
    """
    if spec.derive:
        derived = DERIVED[spec.derive]
        if derived.modality == "image":
            return derived.compute(lay_on(field(sample, "image")))
        text = field(sample, "text")
        if spec.lexicon:
            return derived.compute(text, read_lexicon(spec.lexicon))
        if derived.of_words:
            return [derived.compute(text[begin:end]) for begin, end in words_of(sample, spec)]
        return derived.compute(text)
    try:
        value = field(sample, spec.field or "")
    except UserError:
        return None
    for one in value if isinstance(value, list) else [value]:
        refuse_nan(one, sample["__key__"], spec.field)
    return value


def words_of(sample: dict[str, Any], spec: AttributeSpec) -> list[Span]:
    """Where the words of a sample's text stand.

    Raises:
        UserError: the words that it names are not those of its text.
    """
    words = field(sample, spec.words) if spec.words else None
    try:
        return find_words(field(sample, "text"), words)
    except ValueError as error:
        raise UserError(f"sample {sample.get('__key__')!r}: {spec.words}: {error}") from None


@cache
def read_lexicon(path: str) -> dict[str, float]:
    """Scores by word, in small letters. Further columns, empty lines and those that begin with # are passed over.

    Raises:
        UserError: the file cannot be read, has a line without a score, or no line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"lexicon={path}: cannot be read ({error}); give a text file in UTF-8") from None
    scores = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, *rest = re.split(r"\t+" if "\t" in line else r"[,;\s]\s*", line.strip())
        try:
            scores[word.lower()] = float(rest[0])
        except (IndexError, ValueError):
            raise UserError(
                f"lexicon={path}, line {number}: {line[:60]!r} is no word and number; write e.g. good<tab>1.9"
            ) from None
    if not scores:
        raise UserError(f"lexicon={path}: has no word in it; write a word and its score in each line")
    return scores


def refuse_nan(value: Any, key: str, name: str | None) -> None:
    """Raise a UserError where a sample's answer is NaN, which would make the loss NaN."""
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"sample {key!r}: {name} is NaN, which is no answer; write null where there is none")


def find_answers(specs: dict[str, AttributeSpec], dataset: Dataset) -> dict[str, Answers]:
    """What answers each attribute has.

    Raises:
        UserError: an attribute that no sample has, or that has a single class.
    """
    numbers = {name: spec for name, spec in specs.items() if spec.kind == "number"}
    found = learn_numbers(numbers, dataset) if numbers else {}
    for name, spec in specs.items():
        if spec.derive in CHANGES:
            found[name] = Answers("classes", {which: which for which in range(CHANGES[spec.derive][1])})
        elif spec.kind == "binary":
            found[name] = Answers("binary", {})
        elif spec.kind == "classes":
            known = spec.classes or (
                DERIVED[spec.derive].classes if spec.derive else named_classes(spec, dataset)
            )
            classes = list(known or find_classes(name, spec, dataset))
            found[name] = Answers("classes", {value: i for i, value in enumerate(classes)})
    return found


def learn_numbers(specs: dict[str, AttributeSpec], dataset: Dataset) -> dict[str, Answers]:
    """Means and spreads, from samples spread over the data set."""
    values: dict[str, list[Any]] = {name: [] for name in specs}
    for i in np.setdiff1d(np.linspace(0, len(dataset) - 1, SCANNED).astype(np.int64), dataset.marked):
        sample = dataset[int(i)]
        for name, spec in specs.items():
            value = answer(sample, spec)
            values[name] += value if spec.of_words and isinstance(value, list) else [value]
    found = {}
    for name, spec in specs.items():
        present = [value for value in values[name] if value is not None]
        if not present:
            raise UserError(missing(name, spec))
        if not all(isinstance(value, (bool, int, float, np.number)) for value in present):
            raise UserError(f"objective.attributes.{name}: {present[0]!r} is no number; say kind: classes")
        found[name] = Answers("number", {}, float(np.mean(present)), float(np.std(present)) or 1.0)
    return found


def missing(name: str, spec: AttributeSpec) -> str:
    if spec.derive:
        return f"objective.attributes.{name}: {spec.derive} has no answer in any sample; see `data show`"
    return f"objective.attributes.{name}: no sample has the field {spec.field!r}; see `data show`"


def named_classes(spec: AttributeSpec, dataset: Dataset) -> list[int] | None:
    """The labels that stand for the manifest's class names; None where it names none."""
    names = dataset.manifest.about.get("classes") if spec.field == "label" else None
    return sorted(range(len(names)), key=str) if names else None  # in the order of a scan


def find_classes(name: str, spec: AttributeSpec, dataset: Dataset) -> list[Any]:
    """Every class that the data set has, sorted by its text: scanned whole once, and cached on this machine."""
    found = scan_once(dataset, spec.field or "", spec.of_words)
    classes: list[Any] = found["classes"]
    if not classes:
        raise UserError(missing(name, spec))
    if len(classes) < 2:
        raise UserError(
            f"objective.attributes.{name}: every sample says {classes[0]!r}; there is nothing to learn"
        )
    return classes


def scan_once(dataset: Dataset, name: str, of_words: bool = False) -> dict[str, Any]:
    """`scan` of a data set, from the cache where that was done before; one process of a machine scans, others wait."""
    named = f"{dataset.fingerprint}/{name}" + "/words" * of_words
    key = hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
    path = cache_folder() / "classes-v2" / f"{key}.json"  # v1 took -1 of a .cls for a class
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            cached: dict[str, Any] = json.loads(path.read_bytes())
            return cached
        log.info(
            "looking once at all %d samples for the classes of %s (objective.attributes: give classes to skip it)",
            len(dataset),
            name,
        )
        found = scan(dataset, name, of_words)
        write_atomically(path, json.dumps(found).encode())
    return found


def scan(dataset: Dataset, name: str, of_words: bool = False) -> dict[str, Any]:
    """{"classes": …, "missing": samples without an answer, "damaged": samples that cannot be read} of a field.

    Only the members that the field may stand in (of its kind, or of its own extension) are decoded.

    Raises:
        UserError: an answer is no single value.
    """
    kind = name.split(".", maxsplit=1)[0]
    raw = dataset.with_options(DecodeOptions(raw=True))
    counts: Counter[Any] = Counter()
    without = damaged = 0
    for i in range(len(raw)):
        try:
            members = raw[i]
            key = members.pop("__key__")
            wanted = {e: data for e, data in members.items() if kind in (e, kind_of(e))}
            value = field(decode_sample(key, wanted, DecodeOptions()), name)
        except (DamagedSampleError, DecodeError):
            damaged += 1
            continue
        except UserError:
            without += 1
            continue
        if of_words and not isinstance(value, (list, NoneType)):
            raise UserError(
                f"sample {key!r}: {name} holds a {type(value).__name__}, not a list of its words' classes"
            )
        for one in value if of_words and value else [value]:
            if isinstance(one, (dict, list, np.ndarray, bytes)):
                hint = "; of: words asks each word" if isinstance(one, list) and not of_words else ""
                raise UserError(f"sample {key!r}: {name} holds a {type(one).__name__}, not a class{hint}")
            refuse_nan(one, key, name)
            counts[one] += one is not None
            without += one is None
    classes = sorted((value for value, count in counts.items() if count), key=str)
    return {"classes": classes, "missing": without, "damaged": damaged}
