"""Linear probes on every layer, pooling and weight decay at once: which features of an encoder to use, and how.

All heads are trained together, as one batched matrix product a step, on features from one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DECAYS = (1e-4, 1e-3, 1e-2)
"""L2 penalties; the linear probe's own is the one in the middle."""
STEPS = 100
CHOOSING = 5
"""Every so manieth training sample chooses among the heads, and trains none of them."""
Cell = tuple[int, str, float]
"""Layer (from 1), pooling, decay."""


@dataclass(frozen=True)
class GridResult:
    """What the heads came to."""

    chosen: Cell
    """The one that is best on the training samples that were kept back for choosing."""
    accuracies: dict[Cell, float]
    """On the test samples."""

    @property
    def accuracy(self) -> float:
        """Of the chosen head, on the test samples, which have not chosen it."""
        return self.accuracies[self.chosen]

    def by_name(self) -> dict[str, float]:
        """`layer 3, own, 0.001` → accuracy, for a line of metrics."""
        return {name_cell(cell): accuracy for cell, accuracy in self.accuracies.items()}


def name_cell(cell: Cell) -> str:
    layer, pooling, decay = cell
    return f"layer {layer}, {pooling}, {decay:g}"


def probe_grid(
    train: dict[tuple[int, str], Tensor],
    train_labels: Tensor,
    test: dict[tuple[int, str], Tensor],
    test_labels: Tensor,
) -> GridResult:
    """Fit a head for every (layer, pooling) of `train`, features (N, D of the layer), and every decay. Deterministic.

    Of heads that choose equally well the first one is chosen: the earliest layer, the lowest decay.
    """
    keys = list(train)
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    choosing = torch.arange(len(train_labels)) % CHOOSING == CHOOSING - 1
    fitting = ~choosing if bool(choosing.any()) else torch.ones_like(choosing)
    x, mean, std = stack_standardised([train[key][fitting] for key in keys])
    weight, bias = fit_heads(x, train_labels[fitting], classes, DECAYS)

    def accuracies(features: dict[tuple[int, str], Tensor], labels: Tensor) -> dict[Cell, float]:
        stacked = (pad([features[key] for key in keys], x.shape[2]) - mean) / std  # (G, N, D)
        logits = torch.einsum("gnd,gdrc->gnrc", stacked, weight) + bias.unsqueeze(1)
        right = (logits.argmax(-1) == labels[None, :, None]).double().mean(1)  # (G, R)
        return {
            (layer, pooling, decay): right[g, r].item()
            for g, (layer, pooling) in enumerate(keys)
            for r, decay in enumerate(DECAYS)
        }

    kept_back = choosing if bool(choosing.any()) else fitting
    scores = accuracies({key: train[key][kept_back] for key in keys}, train_labels[kept_back])
    return GridResult(max(scores, key=lambda cell: scores[cell]), accuracies(test, test_labels))


def pad(features: list[Tensor], width: int) -> Tensor:
    """Features (N, D of each) → (G, N, width), zeros where a layer is narrower."""
    return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in features])


def stack_standardised(features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Features of each cell → (G, N, D) with zero mean and unit variance, and that mean and deviation (G, 1, D)."""
    stacked = pad(features, max(x.shape[1] for x in features))
    mean, std = stacked.mean(1, keepdim=True), stacked.std(1, keepdim=True).clamp(min=1e-6)
    return (stacked - mean) / std, mean, std


def fit_heads(
    features: Tensor, labels: Tensor, classes: int, decays: tuple[float, ...], steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regressions with penalty decay · Σ weight², all at once.

    Each step divides the gradient by Böhning's bound of the Hessian (1992), ½ XᵀX/N + 2 decay, which is diagonal along
    the principal axes of the features; with Nesterov's momentum.

    Args:
        features: (G, N, D), centred.
    Returns:
        Weight (G, D, R, classes) and bias (G, R, classes), R one for each decay.
    """
    groups, n, width = features.shape
    curvature, axes = torch.linalg.eigh(features.transpose(1, 2) @ features / n)  # (G, D), (G, D, D)
    rotated = features @ axes  # (G, N, D)
    decay = torch.tensor(decays, dtype=features.dtype).view(1, 1, -1, 1)  # (1, 1, R, 1)
    bound = curvature.clamp(min=0).view(groups, width, 1, 1) / 2 + 2 * decay  # (G, D, R, 1)
    targets = torch.nn.functional.one_hot(labels, classes).to(features.dtype)[None, :, None]  # (1, N, 1, C)
    weight = ahead = features.new_zeros(groups, width, len(decays), classes)
    bias = bias_ahead = features.new_zeros(groups, len(decays), classes)
    for step in range(steps):
        logits = (rotated @ ahead.flatten(2)).view(groups, n, len(decays), classes) + bias_ahead.unsqueeze(1)
        error = (logits.softmax(-1) - targets) / n  # (G, N, R, C)
        gradient = (rotated.transpose(1, 2) @ error.flatten(2)).view_as(weight) + 2 * decay * ahead
        momentum = step / (step + 3)
        before, weight = weight, ahead - gradient / bound
        bias_before, bias = bias, bias_ahead - 2 * error.sum(1)
        ahead = weight + momentum * (weight - before)
        bias_ahead = bias + momentum * (bias - bias_before)
    return (axes @ weight.flatten(2)).view_as(weight), bias
