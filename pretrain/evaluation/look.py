"""Looks at the encoder's features during a run, without labels: how rich they are, and whether they are collapsing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.errors import OneRankError, UserError, mistakes_of_one_rank
from data_tools.stream.randomness import sample_rng
from pretrain.config.sections import Config, RepresentationConfig
from pretrain.data import Sources, count_steps
from pretrain.encoders.base import Encoder
from pretrain.engine.base import Engine
from pretrain.evaluation import representation as measures
from pretrain.evaluation.class_names import find_label
from pretrain.evaluation.probes import BATCH_SIZE
from pretrain.evaluation.shares import share_batches
from pretrain.objectives.base import Batch, Objective

log = logging.getLogger(__name__)
LOOKS = 12
"""Of a run, unless `representation.every` says otherwise: a collapse is seen before a tenth of the run is over."""
SHARE_OF_SAMPLES = 1 / 32
"""All looks together see so many samples for each that is trained on, unless that were fewer than the least. They only
look: a forward pass is a third of a step or less, so that comes to about one percent of a run."""
LEAST, MOST = 64, 2048
CENTRED = "centred_rank"
"""RankMe of the centred features, which a large mean does not hide: what tells a collapse, and is not told itself."""
CONSTANT = 1e-5
"""Spread of a constant encoder at most: a deviation of 0.3 % of the features' size; rounding to bf16 makes 1e-6."""
TOO_MANY_DEAD = 0.5
"""Share of dead dimensions that is too much, where there were fewer at the start."""
FALLEN = {"spread": 0.2, CENTRED: 0.6}
"""Of what there was at the start, where less than that is left of both. One alone falls in healthy runs too: small MAEs
paint every patch grey at first (spread 1/78, all directions kept), supervised ones need few directions."""
REMEDY = "lower optimizer.lr, or look at what keeps this objective from the trivial solution"
View = Callable[[dict[str, Any]], Batch]
Samples = list[tuple[Dataset, int]]
Draw = Callable[[measures.Array, Samples, list[Any]], None]
"""Told of the pooled features (N, D), of which samples they are, and their labels, on all ranks together."""


class Looks:
    """Looks at always the same samples. What it found at the start of the run is kept in checkpoints."""

    def __init__(self, config: Config, objective: Objective, sources: Sources) -> None:
        """Choose the samples.

        Raises:
            UserError: there are none that the encoder can see, or a metric is not for it.
        """
        self.steps = steps = count_steps(config, sources)
        self.seed, self.settings = config.seed, config.representation
        self.every = self.settings.every or math.ceil(steps / LOOKS)
        self.count = self.settings.samples or default_samples(config, steps, self.every)
        self.datasets = held_out(config) or sources
        self.weights = {} if config.data.validation else config.data.weights
        self.start: dict[str, float] = {}
        """What the first look of the run found."""
        self.collapsed = False
        self.objective = objective
        self.label = config.probe.label
        encoder = objective.product_encoder
        if "lidar" in self.settings.metrics and type(encoder).random_view is Encoder.random_view:
            raise UserError(
                f"representation.metrics: lidar needs random views of samples, and encoder.name="
                f"{encoder.config.name!r} has none; leave it out, or give the encoder a random_view()"
            )
        self.choose()

    def choose(self) -> None:
        """The samples, `self.count` of them or all there are, and one of them that can be read."""
        self.samples = choose_samples(self.datasets, self.weights, self.count)
        for sample in self.samples:
            if self.read([sample], [self.objective.view]):
                self.spare = sample
                return
        raise UserError("representation: none of the samples can be read; see `python -m data_tools verify`")

    @property
    def data(self) -> str:
        """What identifies the samples, so that two looks can be compared."""
        return f"{self.count} of {' '.join(dataset.fingerprint for dataset in self.datasets.values())}"

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data, "count": self.count, "start": self.start, "collapsed": self.collapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was found at the start; left where the settings now ask for other samples."""
        if self.settings.samples is None and state["count"] != self.count:
            self.count = state["count"]
            self.choose()
        if state["data"] == self.data:
            self.start, self.collapsed = state["start"], state["collapsed"]

    def measure(self, engine: Engine, features: measures.Array) -> dict[str, float]:
        """All that is known of the features (N, D) now, the same on every rank. Called on all ranks together."""
        views = None
        if "lidar" in self.settings.metrics:
            views, _ = self.embed(
                engine, [partial(self.random_view, i) for i in range(self.settings.lidar_views)]
            )

        found: dict[str, float] = engine.on_main_process(
            lambda: measure_features(features, views, self.settings.metrics)
        )
        return found

    def look(
        self, engine: Engine, step: int, draw: Draw | None = None
    ) -> tuple[dict[str, float], str | None]:
        """Measure, and compare with the start of the run. Called on all ranks together.

        Args:
            draw: makes pictures of the features at the first and the last look of the run.

        Returns:
            What is asked for, `<name>_bound` and `<name>_start` beside each of it; what is wrong, where the features
            have collapsed since the last look.
        """
        with engine.evaluating(self.objective):
            seen, labels = self.embed(engine, [self.objective.view])  # (N, 1, D)
            now = self.measure(engine, seen[:, 0])
            if draw and self.settings.pictures and step in (0, self.steps):
                draw(seen[:, 0], [self.samples[place] for place in labels], list(labels.values()))
        if step == 0:
            self.start = {name: value for name, value in now.items() if not name.endswith("_bound")}
        reason = find_collapse(now, self.start)
        news = reason if reason and not self.collapsed else None
        self.collapsed = reason is not None
        told = {name: value for name, value in now.items() if self.is_told(name)}
        return told | {f"{name}_start": v for name, v in self.start.items() if name in told}, news

    def is_told(self, name: str) -> bool:
        return name in ("spread", "finite") or name.removesuffix("_bound") in self.settings.metrics

    def random_view(self, number: int, sample: dict[str, Any]) -> Batch:
        """One of the views that LiDAR compares, the same at every look."""
        rng = sample_rng(self.seed, number, sample["__key__"])
        return self.objective.product_encoder.random_view(sample, rng)

    @torch.no_grad()
    def embed(self, engine: Engine, views: list[View]) -> tuple[measures.Array, dict[int, Any]]:
        """Pooled features (N, Q, D) of Q views of each sample, in their order, on every rank; damaged ones left out.

        With them, the labels by the samples' places among all, None where a sample has none.
        """
        world, objective = engine.world, self.objective
        parts: list[np.ndarray] = []
        labels: dict[int, Any] = {}
        for indices, counts in share_batches(len(self.samples), BATCH_SIZE, world.rank, world.size):
            samples = [self.samples[index] for index in indices.tolist()]
            found = self.read(samples, views)
            examples = [own for _, own, _ in found or self.read([self.spare], views)]
            if not examples:
                raise OneRankError(
                    "representation: the samples cannot be read any more; are the data still there?"
                )
            seen = []
            for number in range(len(views)):
                batch = objective.collate([own[number] for own in examples])
                with mistakes_of_one_rank():
                    on_device = {k: v.to(engine.device) for k, v in batch.items()}
                    seen.append(objective.encode(on_device).pooled.float().cpu().numpy())
            if counts and found:
                parts.append(np.stack(seen, axis=1))  # (B, Q, D)
                labels |= {int(indices[place]): label for place, _, label in found}
        shares = engine.gather((labels, np.concatenate(parts) if parts else None))
        found_at = {place: label for own, _ in shares for place, label in own.items()}
        order = np.argsort(list(found_at))
        features = np.concatenate([part for _, part in shares if part is not None])[order]
        return features.astype(np.float64), dict(sorted(found_at.items()))

    def read(self, samples: Samples, views: list[View]) -> list[tuple[int, list[Batch], Any]]:
        """The views of each sample that can be read, with its place among all and its label."""
        found = []
        for place, (dataset, index) in enumerate(samples):
            try:
                sample = dataset[index]
                label = find_label(sample, dataset, self.label)
                found.append((place, [view(sample) for view in views], label))
            except (DamagedSampleError, IncompleteSampleError):
                continue  # training replaces it, and says so
            except UserError as error:
                raise OneRankError(f"representation: {error}") from None
        return found


def measure_names(settings: RepresentationConfig) -> list[str]:
    """What a look tells of; nothing where there are no looks."""
    return [] if settings.every == 0 else [*settings.metrics, "spread"]


def default_samples(config: Config, steps: int, every: int) -> int:
    """How many samples a look sees, so that all looks together cost about one percent of a run."""
    trained, looks = config.train.batch_sizes.position(steps), steps // every + 1
    affordable = max(LEAST, int(SHARE_OF_SAMPLES * trained / looks))
    return int(min(MOST, 2 ** int(math.log2(affordable))))


def held_out(config: Config) -> Sources:
    """The data of `data.validation` by its name; nothing where there are none."""
    path = config.data.validation
    return {path: open_dataset(path, fetching=config.data.storage.fetching)} if path else {}


def choose_samples(datasets: Sources, weights: dict[str, float], count: int) -> Samples:
    """At most `count` samples, of each data set a share by its weight, spread evenly over it."""
    chosen = []
    total = sum(weights.get(name, 1.0) for name in datasets)
    for name, dataset in datasets.items():
        readable = dataset.unmarked()
        share = min(len(readable), math.ceil(count * weights.get(name, 1.0) / total))
        places = np.linspace(0, len(readable) - 1, share).astype(np.int64)
        chosen += [(readable, index) for index in places.tolist()]
    return chosen[:count]


def measure_features(
    features: measures.Array, views: measures.Array | None, metrics: tuple[str, ...]
) -> dict[str, float]:
    """The metrics of features (N, D), and of views (N, Q, D) for LiDAR, with their upper bounds.

    Of features that are not finite, that is told, by the share of samples whose are; all else is NaN.
    """
    count, width = features.shape
    if not np.isfinite(features).all():
        unknown = dict.fromkeys((*metrics, "spread"), math.nan)
        return {"finite": float(np.isfinite(features).all(1).mean()), **unknown}
    values = {"rankme": measures.rankme(features), "rankme_bound": float(min(count, width))}
    values |= {"cosine": measures.mean_cosine(features), "cosine_bound": 1.0}
    values |= {"dead": measures.dead_share(features), "dead_bound": 1.0}
    values |= {"spread": measures.spread(features), CENTRED: measures.rankme(features - features.mean(0))}
    if "alpha_req" in metrics:
        values["alpha_req"] = measures.alpha_req(features)
    if "intrinsic_dimension" in metrics:
        values["intrinsic_dimension"] = measures.intrinsic_dimension(features)
        values["intrinsic_dimension_bound"] = float(width)
    if views is not None:
        values |= {"lidar": measures.lidar(views), "lidar_bound": float(min(count - 1, width))}
    return values


def find_collapse(now: dict[str, float], start: dict[str, float]) -> str | None:
    """What is wrong with the features, for people; None where nothing is. See docs/evaluation.md for the limits."""
    if now.get("finite", 1.0) < 1:
        return f"the encoder's features of {1 - now['finite']:.1%} of the samples are not finite"
    if now["spread"] <= CONSTANT:
        return (
            f"the encoder is constant: of its features' mean square only {now['spread']:.1e} differs between samples; "
            f"{REMEDY}"
        )
    if now["dead"] > TOO_MANY_DEAD and now["dead"] > start.get("dead", 0.0) + TOO_MANY_DEAD / 2:
        return f"{now['dead']:.0%} of the features' dimensions are the same in all samples; {REMEDY}"
    if all(now[name] < left * start.get(name, 0.0) for name, left in FALLEN.items()):
        return (
            f"the features are collapsing: they span {now[CENTRED]:.1f} directions about their mean "
            f"(start {start[CENTRED]:.1f}), and {now['spread']:.2%} of their mean square differs between samples "
            f"(start {start['spread']:.2%}); {REMEDY}"
        )
    return None
