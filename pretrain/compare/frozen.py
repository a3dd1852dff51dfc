"""What a frozen encoder is good for with few labels: three probes on its features, over draws of the labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from pretrain.compare.samples import Samples
from pretrain.compare.table import Way
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.closing import closing_engine
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.class_names import class_names, name_class
from pretrain.evaluation.few_shot import DRAWS, draw_per_class, few_shot_accuracies
from pretrain.evaluation.probes import (
    embed,
    first,
    fit_linear,
    judge_linear,
    knn_accuracy,
    labelled,
    number_classes,
    pooled,
)
from pretrain.objectives.base import Batch, Objective

POOL, JUDGES = 2000, 1000
"""Labelled samples that draws are taken from, and that each of the other two parts judges by, at most."""
NEIGHBOURS = 10
WIDE = 4096
"""Dimensions beyond which logistic regression is left out: on raw pixels it takes a minute, and ridge is like it."""
Features = Callable[[Objective, Batch], Tensor]


def raw_input(objective: Objective, batch: Batch) -> Tensor:
    """The samples as they come, (B, D)."""
    return objective.product_encoder.raw_features(batch)


def probe_frozen(
    objective: Objective, samples: Samples, shots: int, features: Features = pooled
) -> dict[str, Any]:
    """`{ways: [a `Way` each probe, as a mapping], seconds: what it took}`.

    Raises:
        UserError: features are not finite, there are no labels, or all are one.
    """
    started = time.monotonic()
    parts, labels = embed_parts(objective, samples, features)
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise UserError("its features are not finite: it has diverged")
    judges = [(parts[side], labels[side]) for side in ("select", "test")]
    found = probe(parts["train"], labels["train"], judges, shots)
    ways = [asdict(Way(name, select, test)) for name, (select, test) in found.items()]
    return {"ways": ways, "seconds": round(time.monotonic() - started, 2)}


def embed_parts(
    objective: Objective, samples: Samples, features: Features
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By part, features (N, D) and class numbers (N,) of its labelled samples."""
    engine = DDPEngine(TrainConfig(), World())
    found: dict[str, Tensor] = {}
    names: dict[str, list[Any]] = {}
    with closing_engine(engine):
        for role in objective.roles.values():
            role.to(engine.device).eval()
        for part, count in (("train", POOL), ("select", JUDGES), ("test", JUDGES)):
            dataset = first(open_dataset(str(getattr(samples, part))).unmarked(), count)
            place = f"the part {part!r} of the data"
            embedded = embed(dataset, objective, engine, samples.label, place, features=features)
            found[part], own = labelled(*embedded, place)
            names[part] = [name_class(one, class_names(dataset, samples.label)) for one in own]
    if len(set(names["train"])) < 2:
        raise UserError(f"label={samples.label}: all samples are {names['train'][0]!r}; name another field")
    numbers = number_classes([name for part in names.values() for name in part])
    return found, dict(zip(names, numbers.split([len(part) for part in names.values()]), strict=True))


def probe(
    train: Tensor, train_labels: Tensor, judges: list[tuple[Tensor, Tensor]], shots: int
) -> dict[str, list[list[float]]]:
    """Accuracies of ridge regression, logistic regression and kNN on the same draws of `shots` labels a class.

    Args:
        judges: features (N, D) and labels (N,) of each part that judges.
    Returns:
        By probe, for each of the judges, the accuracies by draw.
    """
    draws = [draw_per_class(train_labels, shots, np.random.default_rng(number)) for number in range(DRAWS)]
    few = [(train[chosen], train_labels[chosen]) for chosen in draws]
    neighbours = min(NEIGHBOURS, shots)
    found = {
        "ridge": [few_shot_accuracies(train, train_labels, *judge, shots) for judge in judges],
        "kNN": [[knn_accuracy(*known, *judge, neighbours) for known in few] for judge in judges],
    }
    if train.shape[1] <= WIDE:
        classes = int(train_labels.max()) + 1
        fitted = [fit_linear(*known, classes) for known in few]
        found["linear"] = [[judge_linear(*one, *judge) for one in fitted] for judge in judges]
    return found
