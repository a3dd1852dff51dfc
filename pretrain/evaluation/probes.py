"""Probes: how much a frozen encoder already knows, measured by kNN and by a linear classifier on its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.dataset import Dataset, open_dataset
from data_tools.errors import UserError
from data_tools.loader import evaluation_batches
from pretrain.config.sections import ProbeConfig
from pretrain.encoders.base import field
from pretrain.objectives.base import Batch, Encoded


class OnlineProbe:
    """Probes an objective's encoder during the run, on labelled samples that training does not use."""

    def __init__(self, config: ProbeConfig) -> None:
        self.config = config
        assert config.train and config.test, "asked for where probes run"
        self.train = first(open_dataset(config.train), config.train_samples)
        self.test = first(open_dataset(config.test), config.test_samples)

    def measure(
        self,
        encode: Callable[[Batch], Encoded],
        view: Callable[[dict[str, Any]], Batch],
        device: torch.device,
    ) -> dict[str, float]:
        """Accuracies {"knn", "linear"} in [0, 1], the same on every rank."""
        classes = ClassNames(self.config.label)
        train = features(self.train, encode, view, classes, device)
        test = features(self.test, encode, view, classes, device)
        return {
            "knn": knn_accuracy(*train, *test, self.config.neighbours),
            "linear": linear_accuracy(*train, *test),
        }


class ClassNames:
    """Labels of any kind → class numbers, in order of first sight."""

    def __init__(self, field_name: str) -> None:
        self.field_name = field_name
        self.numbers: dict[Any, int] = {}

    def number(self, sample: dict[str, Any]) -> int:
        """The class of a sample.

        Raises:
            UserError: the sample has no such field, or it is not a single value.
        """
        value = field(sample, self.field_name)
        if isinstance(value, (dict, list, np.ndarray)):
            raise UserError(f"label field {self.field_name!r}: holds a {type(value).__name__}, not a class")
        return self.numbers.setdefault(value, len(self.numbers))


def first(dataset: Dataset, count: int) -> Dataset:
    """At most `count` samples, spread evenly over the data set."""
    if len(dataset) <= count:
        return dataset
    return dataset.select(np.linspace(0, len(dataset) - 1, count).astype(np.int64))


@torch.no_grad()
def features(
    dataset: Dataset,
    encode: Callable[[Batch], Encoded],
    view: Callable[[dict[str, Any]], Batch],
    classes: ClassNames,
    device: torch.device,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """Pooled features (N, D) in fp32 and class numbers (N,) of a whole data set, on the CPU."""

    def transform(sample: dict[str, Any], _rng: np.random.Generator) -> Batch:
        return {**view(sample), "class": classes.number(sample)}

    pooled, labels = [], []
    for batch, _ in evaluation_batches(dataset, transform, batch_size, rank=0, world_size=1):
        on_device = {name: value.to(device) for name, value in batch.items() if name != "class"}
        pooled.append(encode(on_device).pooled.float().cpu())
        labels.append(batch["class"])
    return torch.cat(pooled), torch.cat(labels)


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int
) -> float:
    """Share of test samples whose class is the majority (by cosine weight) of their nearest training samples."""
    k = min(neighbours, len(train))
    similarity = unit(test) @ unit(train).T  # (test, train)
    weight, nearest = similarity.topk(k, dim=1)  # (test, k)
    votes = torch.zeros(len(test), int(train_labels.max()) + 1)
    votes.scatter_add_(1, train_labels[nearest], weight.clamp(min=0))
    return (votes.argmax(1) == test_labels).float().mean().item()


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of multinomial logistic regression on standardised features. Deterministic."""
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    weight, bias = fit_linear(train, train_labels, classes)
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
