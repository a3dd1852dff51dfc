"""What few labels are worth: ridge regression on the frozen features of a few samples a class, in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DRAWS = 10
"""Random choices of the labelled samples, the same at every step of a run."""
RIDGE = 1.0
"""λ, for standardised features whose squares are averaged over dimensions (as 2^10 for 1,024 in big_vision)."""


def few_shot_accuracies(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, shots: int
) -> list[float]:
    """Accuracy on the test samples of each draw of `shots` training samples a class (of all, where it has fewer)."""
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-6)  # needs no labels
    train, test = (train.double() - mean) / std, (test.double() - mean) / std
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    accuracies = []
    for draw in range(DRAWS):
        chosen = draw_per_class(train_labels, shots, np.random.default_rng(draw))
        weight, bias = fit_ridge(train[chosen], train_labels[chosen], classes)
        right = (test @ weight + bias).argmax(1) == test_labels
        accuracies.append(right.double().mean().item())
    return accuracies


def draw_per_class(labels: Tensor, shots: int, rng: np.random.Generator) -> Tensor:
    """Indices of at most `shots` random samples of each class."""
    order = torch.from_numpy(rng.permutation(len(labels)))
    return torch.cat([order[labels[order] == one][:shots] for one in labels.unique()])


def fit_ridge(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Ridge regression on one-hot labels: weight (D, classes) and bias (classes,).

    In the dual form, (n, n) for n samples, which are fewer than dimensions.
    """
    targets = torch.nn.functional.one_hot(labels, classes).to(features.dtype)  # (n, classes)
    x, y = features - features.mean(0), targets - targets.mean(0)
    kernel = x @ x.T / x.shape[1]  # (n, n)
    weight = x.T @ torch.linalg.solve(kernel + RIDGE * torch.eye(len(x), dtype=x.dtype), y) / x.shape[1]
    return weight, targets.mean(0) - features.mean(0) @ weight
