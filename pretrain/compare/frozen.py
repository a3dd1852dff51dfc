"""What a frozen encoder is good for with few labels: three probes on its features, over draws of the labels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from pretrain.compare.samples import Samples
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.closing import closing_engine
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.class_names import class_names, name_class
from pretrain.evaluation.few_shot import DRAWS, draw_per_class, few_shot_accuracies
from pretrain.evaluation.probes import (
    embed,
    first,
    knn_accuracy,
    labelled,
    linear_accuracy,
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
    path: Path, objective: Objective, samples: Samples, label: str, shots: int, features: Features = pooled
) -> dict[str, Any]:
    """Accuracies of each probe, `{ridge: {select: [...], test: [...]}}`, which are kept in the file `path`.

    Raises:
        UserError: features are not finite, or a part of the data has no labels.
    """
    started = time.monotonic()
    parts, labels = embed_parts(objective, samples, label, features)
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise UserError("its features are not finite: it has diverged")
    probes = {
        side: probe(parts["train"], labels["train"], parts[side], labels[side], shots)
        for side in ("select", "test")
    }
    found = {
        "probes": {name: {side: probes[side][name] for side in probes} for name in probes["select"]},
        "seconds": round(time.monotonic() - started, 2),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    return found


def embed_parts(
    objective: Objective, samples: Samples, label: str, features: Features
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By part, features (N, D) and class numbers (N,) of its labelled samples."""
    engine = DDPEngine(TrainConfig(), World())
    found: dict[str, Tensor] = {}
    names: dict[str, list[Any]] = {}
    with closing_engine(engine):
        for role in objective.roles.values():
            role.to(engine.device).eval()
        for part, count in (("train", POOL), ("select", JUDGES), ("test", JUDGES)):
            dataset = open_part(getattr(samples, part), count)
            place = f"the part {part!r} of the data"
            embedded = embed(dataset, objective, engine, label, place, features=features)
            found[part], own = labelled(*embedded, place)
            names[part] = [name_class(one, class_names(dataset, label)) for one in own]
    numbers = number_classes([name for part in names.values() for name in part])
    return found, dict(zip(names, numbers.split([len(part) for part in names.values()]), strict=True))


def open_part(folder: Path, count: int) -> Dataset:
    return first(open_dataset(str(folder)).unmarked(), count)


def probe(
    train: Tensor, train_labels: Tensor, judges: Tensor, labels: Tensor, shots: int
) -> dict[str, list[float]]:
    """The accuracies of ridge regression, logistic regression and kNN on the same draws of `shots` labels a class."""
    found: dict[str, list[float]] = {
        "ridge": few_shot_accuracies(train, train_labels, judges, labels, shots),
        "kNN": [],
    }
    if train.shape[1] <= WIDE:
        found["linear"] = []
    for number in range(DRAWS):
        chosen = draw_per_class(train_labels, shots, np.random.default_rng(number))
        few = train[chosen], train_labels[chosen], judges, labels
        found["kNN"].append(knn_accuracy(*few, min(NEIGHBOURS, shots)))
        if "linear" in found:
            found["linear"].append(linear_accuracy(*few))
    return found


def untrained(values: dict[str, Any]) -> Objective:
    """A candidate's objective with the weights that it begins with."""
    from pretrain.config.load import build_config
    from pretrain.run.run import build_objective

    config = build_config(values)
    (path,) = config.data.paths.values()
    with torch.random.fork_rng(devices=[]):
        return build_objective(config, open_dataset(path))
