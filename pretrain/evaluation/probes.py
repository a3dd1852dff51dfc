"""Probes: how much a frozen encoder already knows, measured by kNN and by linear classifiers on its features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.errors import OneRankError, UserError, mistakes_of_one_rank
from data_tools.storage.segments import FetchOptions
from pretrain.config.sections import ProbeConfig
from pretrain.encoders.base import Encoder
from pretrain.engine.base import Engine
from pretrain.evaluation.class_names import comparable_names, name_class, read_label
from pretrain.evaluation.few_shot import few_shot_accuracies
from pretrain.evaluation.layers import pooled_layers
from pretrain.evaluation.probe_grid import name_cell, probe_grid
from pretrain.evaluation.shares import share_batches
from pretrain.objectives.base import Batch, Objective

log = logging.getLogger(__name__)

BATCH_SIZE = 256
"""Samples of one rank in one forward pass."""


class OnlineProbe:
    """Probes an objective's encoder during the run, on labelled samples that training does not use."""

    def __init__(self, config: ProbeConfig, fetching: FetchOptions = FetchOptions()) -> None:  # noqa: B008 - frozen
        """``fetching``: how data that do not lie on this machine are reached."""
        self.config = config
        assert config.train and config.test, "asked for where probes run"
        self.train = first(open_dataset(config.train, fetching=fetching).unmarked(), config.train_samples)
        self.test = first(open_dataset(config.test, fetching=fetching).unmarked(), config.test_samples)

    def measure(self, objective: Objective, engine: Engine) -> dict[str, Any]:
        """Accuracies in [0, 1] by the names of `probe_names`, the same on every rank. Called on all ranks together.

        With `few_shot_sd`, the deviation over its draws, and of a grid `grid_choice` and `grid_cells` (by name, all of
        them). Each rank embeds its share of the samples; rank 0 then classifies all of them.
        """
        grid, label = Layers() if self.config.grid else None, self.config.label
        features = grid or pooled
        places = f"probe.train={self.config.train}", f"probe.test={self.config.test}"
        train, train_labels = labelled(
            *embed(self.train, objective, engine, label, places[0], features=features), places[0]
        )
        test, test_labels = labelled(
            *embed(self.test, objective, engine, label, places[1], features=features), places[1]
        )

        def classify() -> dict[str, Any]:
            names, test_names, _ = comparable_names(self.train, self.test, label)
            numbers = number_classes(
                [name_class(label, names) for label in train_labels]
                + [name_class(label, test_names) for label in test_labels]
            )
            labels = numbers[: len(train)], numbers[len(train) :]
            with torch.autocast(
                train.device.type, enabled=False
            ):  # the encoder's precision is not the classifier's
                if grid is None:
                    return self.classify(train, labels[0], test, labels[1])
                by_layer, test_by_layer = grid.split(train), grid.split(test)
                own, test_own = by_layer[grid.output], test_by_layer[grid.output]
                found = probe_grid(by_layer, labels[0], test_by_layer, labels[1])
                return {
                    **self.classify(own, labels[0], test_own, labels[1]),
                    "grid": found.accuracy,
                    "grid_choice": name_cell(found.chosen),
                    "grid_cells": found.by_name(),
                }

        accuracies: dict[str, Any] = engine.on_main_process(classify)
        return accuracies

    def classify(
        self, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
    ) -> dict[str, float]:
        """What the probes of the encoder's own pooled features (N, D) reach."""
        data = train, train_labels, test, test_labels
        found = {"knn": knn_accuracy(*data, self.config.neighbours), "linear": linear_accuracy(*data)}
        if shots := self.config.few_shot:
            accuracies = few_shot_accuracies(*data, shots)
            found |= {"few_shot": mean(accuracies), "few_shot_sd": stdev(accuracies)}
        return found


def probe_names(config: ProbeConfig) -> list[str]:
    """The accuracies that these settings have measured; none where no probe runs."""
    if not config.every:
        return []
    return ["knn", "linear", *(["few_shot"] if config.few_shot else []), *(["grid"] if config.grid else [])]


def pooled(objective: Objective, batch: Batch) -> Tensor:
    """The encoder's own pooled features (B, D)."""
    return objective.encode(batch).pooled


class Layers:
    """The features of all layers and poolings side by side, (B, ΣD), and the way back to each of them."""

    def __init__(self) -> None:
        self.widths: dict[tuple[int, str], int] = {}

    @property
    def output(self) -> tuple[int, str]:
        """Where the encoder's own pooled features stand."""
        return max(layer for layer, _ in self.widths), "own"

    def __call__(self, objective: Objective, batch: Batch) -> Tensor:
        features = pooled_layers(objective.product_encoder, batch)
        self.widths = {key: x.shape[1] for key, x in features.items()}
        return torch.cat([x.float() for x in features.values()], dim=1)

    def split(self, features: Tensor) -> dict[tuple[int, str], Tensor]:
        return dict(zip(self.widths, features.split(list(self.widths.values()), dim=1), strict=True))


def check_probe_data(probe: OnlineProbe, encoder: Encoder) -> None:
    """Raise a `UserError` where the probe's samples are not for this encoder: tokens of another tokenizer."""
    encoder.check_data(probe.train, f"probe.train={probe.config.train}")
    encoder.check_data(probe.test, f"probe.test={probe.config.test}")


def first(dataset: Dataset, count: int) -> Dataset:
    """At most `count` samples, spread evenly over the data set."""
    if len(dataset) <= count:
        return dataset
    return dataset.select(np.linspace(0, len(dataset) - 1, count).astype(np.int64))


@torch.no_grad()
def embed(
    dataset: Dataset,
    objective: Objective,
    engine: Engine,
    label_field: str,
    place: str = "probe",
    batch_size: int = BATCH_SIZE,
    features: Callable[[Objective, Batch], Tensor] = pooled,
) -> tuple[Tensor, list[Any]]:
    """Features (N, D) in fp32 on the CPU and labels (N) of a whole data set in its order, on every rank.

    Each rank sees its share of the samples. Called on all ranks together. ``place``: the setting that names them.

    Args:
        features: of the batch on the device.
    Raises:
        OneRankError: a sample of this rank's share is damaged, or its label is missing or not a single value.
    """
    world = engine.world
    parts, labels = [], []
    for indices, counts in share_batches(len(dataset), batch_size, world.rank, world.size):
        try:
            samples = [dataset[index] for index in indices.tolist()]
            classes = [read_probe_label(sample, label_field) for sample in samples]
            batch = objective.collate([objective.view(sample) for sample in samples])
        except (UserError, DamagedSampleError) as error:
            raise OneRankError(f"{place}: {error}") from None
        with mistakes_of_one_rank():
            found = features(objective, {k: v.to(engine.device) for k, v in batch.items()}).float().cpu()
        if counts:
            parts.append(found.numpy())
            labels += classes
    shares = engine.gather((np.concatenate(parts) if parts else None, labels))
    whole = np.empty((len(dataset), *shares[0][0].shape[1:]), dtype=np.float32)
    named: list[Any] = [None] * len(dataset)
    for rank, (part, classes) in enumerate(shares):
        if part is not None:
            whole[rank :: world.size], named[rank :: world.size] = part, classes
    return torch.from_numpy(whole), named


def read_probe_label(sample: dict[str, Any], label_field: str) -> Any:
    """The label of a sample, None where it has none; raises a UserError where there is no such field."""
    try:
        return read_label(sample, label_field, f"probe.label={label_field!r}")
    except IncompleteSampleError as error:
        raise UserError(
            f"{error}; name the field that holds the class with probe.label (json.NAME for a key of the JSON), give "
            "data that have one, or set probe.every=0"
        ) from None


def labelled(features: Tensor, labels: list[Any], place: str) -> tuple[Tensor, list[Any]]:
    """Those samples of (N, D) and (N) that have a label; raises a UserError where none has. Called on every rank."""
    kept = [i for i, label in enumerate(labels) if label is not None]
    if not kept:
        raise UserError(f"{place}: none of its {len(labels):,} samples has a label; give labelled samples")
    if len(kept) < len(labels):
        tell_unlabelled(place, len(labels) - len(kept), len(labels))
    return features[kept], [labels[i] for i in kept]


@lru_cache
def tell_unlabelled(place: str, without: int, samples: int) -> None:
    """Say once, not at each probe, how many samples it leaves out."""
    log.warning("%s: %s of %s samples have no label and are left out", place, f"{without:,}", f"{samples:,}")


def number_classes(labels: list[Any]) -> Tensor:
    """Labels of any kind → class numbers (N,), in order of first sight."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int
) -> float:
    """Share of test samples whose class is the majority (by cosine weight) of their nearest training samples.

    A neighbour at an obtuse angle has no vote, unless all of a sample's neighbours are: then nearer ones count more.
    """
    k = min(neighbours, len(train))
    similarity = unit(test) @ unit(train).T  # (test, train)
    nearness, nearest = similarity.topk(k, dim=1)  # (test, k)
    weight = torch.where(nearness[:, :1] > 0, nearness.clamp(min=0), nearness.exp())
    votes = torch.zeros(len(test), int(train_labels.max()) + 1)
    votes.scatter_add_(1, train_labels[nearest], weight)
    return (votes.argmax(1) == test_labels).float().mean().item()


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of multinomial logistic regression on standardised features. Deterministic."""
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    return judge_linear(*fit_linear(train, train_labels, classes), test, test_labels)


def judge_linear(weight: Tensor, bias: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of what `fit_linear` has found."""
    return ((test @ weight.T + bias).argmax(1) == test_labels).float().mean().item()


def fit_linear(
    features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression (L-BFGS, L2) on standardised features.

    Returns:
        Weight (classes, D) and bias (classes,) for the features as they are.
    """
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    standard = (features - mean) / std
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels)
        loss = loss + decay * weight.pow(2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    raw = weight.detach() / std
    return raw, bias.detach() - raw @ mean
