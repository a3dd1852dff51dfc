"""Labels of samples, and class-balanced draws of few of them."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from data_tools.dataset.content import DIGEST, digest_fields, find_originals
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.errors import UserError
from data_tools.storage.settings import StorageConfig
from pretrain.encoders.base import field
from pretrain.evaluation.class_names import name_class, read_label

MEMORY = 512 * 2**20
"""Bytes of decoded samples that are kept; what does not fit is decoded each time."""
UNKNOWN = -1
"""Class number of a test sample whose class no training sample has: never predicted, so always counted as wrong."""


@dataclass(frozen=True)
class LabelledDataConfig:
    """Labelled samples to learn from and to be judged by."""

    train: str | None = None
    """Needed."""
    test: str | None = None
    """None: hold out a part of `train`."""
    holdout: float = 0.25
    """Share of the groups that is held out where there is no test set."""
    group: str | None = None
    """Field whose values are held out whole, e.g. `json.year`: paragraphs of one speech must not stand on both sides.
    None: every sample for itself."""
    label: str = "label"
    """The sample's field that holds the class, e.g. `label`, or `json.party` for a key of its JSON member."""
    label_bins: tuple[float, ...] | None = None
    """Boundaries that turn a number into a class: [1850, 1900] makes three eras of `json.year`."""
    test_samples: PositiveInt | None = None
    """Judge by so many test samples at most, drawn by the seed; None: by all of them."""
    storage: StorageConfig = StorageConfig()
    """Of remote data."""


class Remembered:
    """A data set that decodes each sample once; has what streams and batches need of a `Dataset`."""

    def __init__(self, dataset: Dataset, samples: dict[tuple[int, int], Any] | None = None) -> None:
        self.dataset = dataset
        self.samples = {} if samples is None else samples
        self.room = MEMORY

    def read(self, shard: int, number: int, run: tuple[int, int] | None = None) -> dict[str, Any]:
        key = (shard, number)
        if key not in self.samples:
            sample = self.dataset.read(shard, number, run)
            self.room -= sum(v.nbytes if isinstance(v, np.ndarray) else len(str(v)) for v in sample.values())
            if self.room < 0:
                return sample
            self.samples[key] = sample
        return dict(self.samples[key])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shards, numbers = self.dataset.locate(np.array([index], dtype=np.int64))
        return self.read(int(shards[0]), int(numbers[0]))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def select(self, indices: NDArray[np.int64]) -> Remembered:
        chosen = Remembered(self.dataset.select(indices), self.samples)
        chosen.room = self.room
        return chosen


class Labelled:
    """A data set with the class number of each sample."""

    def __init__(
        self,
        dataset: Any,
        config: LabelledDataConfig,
        classes: list[Any],
        numbers: NDArray[np.int64],
        notes: tuple[str, ...] = (),
        names: list[str] | None = None,
    ) -> None:
        self.dataset, self.config, self.classes, self.numbers = dataset, config, classes, numbers
        self.names = names
        self.notes = notes
        """What the reader of the results must know of the labels."""
        self.number_of = {label: i for i, label in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.dataset)

    def number(self, sample: dict[str, Any]) -> int:
        """The class number of a sample, `UNKNOWN` where no training sample has its class."""
        return self.number_of.get(label_of(sample, self.config, self.names), UNKNOWN)

    def select(self, indices: NDArray[np.int64]) -> Labelled:
        chosen = self.dataset.select(indices)
        return Labelled(chosen, self.config, self.classes, self.numbers[indices], names=self.names)


def read_labelled(
    dataset: Dataset,
    config: LabelledDataConfig,
    classes: list[Any] | None = None,
    names: list[str] | None = None,
) -> Labelled:
    """Decode a data set once and number its classes; samples whose label is null, or -1 in a .cls, are left out.

    Args:
        classes: those of the training samples, where this is the test set.
        names: of the classes that the data set numbers, where it names them; `classes` are then names too.
    Raises:
        UserError: no such field, no label at all, a damaged sample, fewer than two classes.
    """
    remembered = Remembered(dataset)
    try:
        labels = [label_of(remembered[i], config, names) for i in range(len(dataset))]
    except DamagedSampleError as error:
        raise UserError(
            f"{error}; run `python -m data_tools verify`, and the damaged samples are left out"
        ) from None
    notes: list[str] = []
    present = np.array([i for i, label in enumerate(labels) if label is not None], dtype=np.int64)
    if len(present) < len(labels):
        missing = len(labels) - len(present)
        notes.append(f"{missing:,} of {len(labels):,} samples have no {config.label} and are left out")
    found = sorted({label for label in labels if label is not None}, key=order)
    if config.label_bins is not None:
        found = [name for name in bin_names(config.label_bins) if name in found]
    if classes is None and len(found) < 2:
        raise UserError(
            f"data.label={config.label!r}: {len(found)} class in {len(labels)} samples; at least 2 are needed"
        )
    if not len(present):
        raise UserError(f"data.label={config.label!r}: no sample of the test set has one; check data.test")
    known = classes if classes is not None else found
    strange = [str(label) for label in found if label not in known]
    if strange:
        notes.append(f"classes that no training sample has count as wrong: {', '.join(strange[:10])}")
    number_of = {label: i for i, label in enumerate(known)}
    numbers = np.array([number_of.get(labels[i], UNKNOWN) for i in present], dtype=np.int64)
    return Labelled(remembered.select(present), config, known, numbers, tuple(notes), names)


def hold_out(labelled: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """(train, test): whole groups go to the test side, each by the hash of its value, so new data move no old ones.

    Exact copies never stand on both sides: they go where the first of them goes; where groups hold them apart, those of
    training samples are left out.
    """
    config = labelled.config
    shares, digests = [], []
    for i in range(len(labelled)):
        sample = labelled.dataset[i]
        value = field(sample, config.group) if config.group else sample["__key__"]
        digest = hashlib.blake2b(repr((seed, value)).encode(), digest_size=8).digest()
        shares.append(int.from_bytes(digest) / 2**64)
        digests.append(digest_fields(sample))
    held = np.array(shares) < config.holdout
    original = find_originals(np.array(digests, dtype=DIGEST))
    copies = np.zeros(len(held), dtype=np.bool_)
    if config.group:
        copies = held & np.isin(original, original[~held])
    else:
        held = held[original]
    train_side, held = ~held, held & ~copies
    for side in (held, train_side):
        if len(np.unique(labelled.numbers[side])) < len(labelled.classes):
            raise UserError(
                f"data.holdout={config.holdout}: leaves a class without samples on one side; "
                "choose another share, group or seed, or name a test set"
            )
    note = f"held out as test set: {held.sum():,} samples, " + (
        f"no {config.group} on both sides" if config.group else "each drawn for itself"
    )
    if copies.any():
        note += f"; {copies.sum():,} copies of training samples are left out"
    train = labelled.select(np.flatnonzero(train_side))
    train.notes = (*labelled.notes, note)
    return train, labelled.select(np.flatnonzero(held))


def order(label: Any) -> tuple[bool, float, str]:
    """Sorts numbers by size before names by alphabet."""
    number = isinstance(label, (int, float))
    return not number, float(label) if number else 0.0, str(label)


def label_of(sample: dict[str, Any], config: LabelledDataConfig, names: list[str] | None = None) -> Any:
    """The class of a sample as it stands there, by its name, or the bin it falls into; None where it is null."""
    value = read_label(sample, config.label, f"data.label={config.label!r}")
    if config.label_bins is None or value is None:
        return name_class(value, names)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"data.label_bins: {config.label}={value!r} of {sample['__key__']} is not a number")
    return bin_names(config.label_bins)[bisect.bisect_right(config.label_bins, value)]


def bin_names(edges: tuple[float, ...]) -> list[str]:
    """`< 1850`, `1850 to 1900`, `≥ 1900`; a value on a boundary belongs to what follows."""
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return [f"< {edges[0]:g}", *inner, f"≥ {edges[-1]:g}"]


def draw(numbers: NDArray[np.int64], per_class: int, seed: int, number: int) -> NDArray[np.int64]:
    """Indices of a class-balanced draw, sorted: at most `per_class` of each class, by (seed, number) alone.

    A smaller draw of the same number is contained in a larger one, so that table rows differ by added labels only.
    """
    rng = np.random.default_rng([seed, number])
    chosen = [rng.permutation(np.flatnonzero(numbers == c))[:per_class] for c in np.unique(numbers)]
    return np.sort(np.concatenate(chosen))


def drawable(labelled: Labelled, sizes: tuple[int, ...]) -> tuple[list[int], list[str]]:
    """The sizes that the data allow, and a line for each that they do not, or not for every class."""
    counts = np.bincount(labelled.numbers, minlength=len(labelled.classes))
    possible, notes = [], []
    for size in sorted(set(sizes)):
        short = [f"{labelled.classes[c]} ({counts[c]})" for c in np.flatnonzero(counts < size)]
        if len(short) == len(counts):
            notes.append(
                f"{size} labels a class: left out, no class has so many (the largest has {counts.max()})"
            )
            continue
        possible.append(size)
        if short:
            notes.append(f"{size} labels a class: all there are of {', '.join(short)}")
    return possible, notes


def limit(labelled: Labelled, count: int | None, seed: int) -> Labelled:
    """At most `count` samples, the same for the same seed; with a note where some are left out."""
    if count is None or count >= len(labelled):
        return labelled
    kept = labelled.select(np.sort(np.random.default_rng(seed).permutation(len(labelled))[:count]))
    kept.notes = (
        *labelled.notes,
        f"data.test_samples: judged by {count:,} of {len(labelled):,} test samples",
    )
    return kept
