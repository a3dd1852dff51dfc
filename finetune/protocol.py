"""What is compared with what: fine-tuning against from-scratch, probes against untrained encoders and raw inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.dataset.overlap import refuse_shared
from data_tools.errors import UserError
from data_tools.storage.objects import redacted
from data_tools.storage.segments import FetchOptions
from finetune.config import Config
from finetune.labels import Labelled, draw, drawable, hold_out, limit, read_labelled
from finetune.progress import TimeLeft, TrainingProgress
from finetune.tasks import task_class
from finetune.tasks.classification import Classification
from finetune.training import (
    Pretrained,
    TestSet,
    accuracy,
    build_task,
    count_steps,
    open_pretrained,
    pooled_features,
    train,
)
from pretrain.engine.base import Engine, World
from pretrain.engine.closing import closing_engine
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.class_names import class_names, comparable_names
from pretrain.evaluation.probes import knn_accuracy, linear_accuracy
from pretrain.ops.seeds import seed_of
from pretrain.tracking.tracks import Tracks

COLUMNS = {
    "full": ("full",),
    "scratch": ("scratch",),
    "linear": ("linear", "linear_untrained"),
    "knn": ("knn", "knn_untrained", "knn_raw"),
}
"""What is measured for each method that is asked for: a probe never stands without its baselines."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Everything a measurement needs, read once."""

    config: Config
    pretrained: Pretrained
    train: Labelled
    test: Labelled


def open_bench(config: Config) -> Bench:
    """Open the encoder and both data sets.

    Raises:
        UserError: one of them is not there, or they do not belong together.
    """
    if not config.encoder:
        raise UserError("encoder: missing; give a run or a release, e.g. encoder=runs/mae_digits")
    pretrained = open_pretrained(Path(config.encoder))
    modality = task_class(config.task.name).modality
    if pretrained.encoder.modality != modality:
        raise UserError(
            f"encoder={config.encoder}: sees {pretrained.encoder.modality}, but {config.task.name} needs an encoder of "
            f"{modality}; choose another task or encoder"
        )
    assert config.data.train, "asked for with the settings"
    given = open_for(config.data.train, modality, config.data.storage.fetching)
    pretrained.encoder.check_data(given, f"data.train={redacted(config.data.train)}")
    if config.data.test is None:
        train = read_labelled(given, config.data, names=class_names(given, config.data.label))
        train, test = hold_out(train, config.seed)
    else:
        asked = open_for(config.data.test, modality, config.data.storage.fetching)
        pretrained.encoder.check_data(asked, f"data.test={redacted(config.data.test)}")
        train_name, test_name = redacted(config.data.train), redacted(config.data.test)
        refuse_shared(given, asked, f"data.train={train_name}", f"data.test={test_name}")
        names, test_names, note = comparable_names(given, asked, config.data.label)
        train = read_labelled(given, config.data, names=names)
        test = read_labelled(asked, config.data, train.classes, test_names)
        test.notes = (*test.notes, *filter(None, [note]))
    return Bench(config, pretrained, train, limit(test, config.data.test_samples, config.seed))


def open_for(path: str, modality: str, fetching: FetchOptions) -> Dataset:
    """The data set at a path or URL; raises a `UserError` where its samples are of another modality."""
    dataset = open_dataset(path, fetching=fetching).unmarked()
    if modality not in dataset.fields:
        raise UserError(
            f"{redacted(path)}: its samples have no {modality}; they have: {', '.join(dataset.fields)}"
        )
    return dataset


def run_protocol(config: Config, report: Report) -> tuple[dict[str, Any], Classification | None]:
    """Measure every method as the protocol says. Called on all ranks together.

    Returns:
        The content of `finetune.json`, the same on every rank; and, where all labels were used, the fine-tuned task.
    """
    started = time.perf_counter()
    everyone = DDPEngine(config.train)
    with closing_engine(everyone):
        bench = open_bench(config)
        if config.protocol.labels_per_class is None:
            rows, task = all_labels(bench, everyone, report)
            notes: list[str] = []
        else:
            rows, notes = low_labels(bench, everyone, report)
            task = None
    return {
        "task": config.task.name,
        "metric": "accuracy",
        "encoder": str(config.encoder),
        "rows": rows,
        "notes": [*bench.train.notes, *bench.test.notes, *notes],
        "classes": [str(label) for label in bench.train.classes],
        "labels_total": len(bench.train),
        "test_samples": len(bench.test),
        "seconds": round(time.perf_counter() - started, 1),
    }, task


def low_labels(bench: Bench, everyone: Engine, report: Report) -> tuple[list[dict[str, Any]], list[str]]:
    """Draws of few labels, shared out over the ranks; each rank computes its own alone, so their number is the same."""
    protocol = bench.config.protocol
    sizes, notes = drawable(bench.train, protocol.labels_per_class or ())
    if not sizes:
        raise UserError("; ".join(notes))
    columns = [name for method in protocol.methods for name in COLUMNS[method]]
    world = everyone.world
    results = torch.zeros(len(sizes), len(columns), protocol.draws, dtype=torch.float64)
    mine = range(world.rank, protocol.draws, world.size)
    with one_thread():
        alone = DDPEngine(bench.config.train, World(local_rank=world.local_rank))
        drawing = Drawing(bench, alone)
        notes += few_samples(bench, sizes)
        costs = {size: cost_of_draw(bench, size) for size in sizes}
        time_left = TimeLeft(sum(costs.values()) * len(mine))
        for i, size in enumerate(sizes):
            for number in mine:
                measured = drawing.measure(size, number)
                results[i, :, number] = torch.tensor(
                    [measured[name] for name in columns], dtype=torch.float64
                )
                shown = "  ".join(f"{name} {100 * measured[name]:.1f}" for name in columns)
                report(
                    f"{size:>5} labels a class, draw {number + 1:>2} of {protocol.draws}:  {shown}  "
                    f"({time_left.add(costs[size])})"
                )
    results = everyone.sum(results).cpu()
    rows = [
        row(size, name, results[i, j].tolist())
        for i, size in enumerate(sizes)
        for j, name in enumerate(columns)
    ]
    return rows, notes


def few_samples(bench: Bench, sizes: list[int]) -> list[str]:
    """A note for each number of labels that is less than a batch, where something is trained."""
    notes = []
    for size in sizes:
        samples = int(np.minimum(np.bincount(bench.train.numbers), size).sum())
        batch = bench.config.for_run("full", size).train.global_batch_size
        if samples < batch and {"full", "scratch"} & set(bench.config.protocol.methods):
            notes.append(
                f"{size} labels a class: {samples} samples are fewer than a batch (train.global_batch_size={batch}), "
                f"so each is seen {batch / samples:.3g} times a step"
            )
    return notes


def cost_of_draw(bench: Bench, size: int) -> float:
    """What a draw of `size` labels a class costs beside those of other sizes: the steps that are trained, or 1."""
    config, samples = bench.config, size * len(bench.train.classes)
    trained = [method for method in config.protocol.methods if method in ("full", "scratch")]
    return sum(count_steps(config.for_run(method, size), samples) for method in trained) or 1.0


def row(labels_per_class: int | None, method: str, draws: list[float]) -> dict[str, Any]:
    """A line of the table: the mean over draws, and their standard deviation (of a sample: n - 1)."""
    sd = statistics.stdev(draws) if len(draws) > 1 else 0.0
    return {
        "labels_per_class": labels_per_class,
        "method": method,
        "mean": statistics.fmean(draws),
        "sd": sd,
        "draws": draws,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread a process on a CPU: sums then come out the same on any number of processes."""
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Drawing:
    """Measures one draw after the other; features of frozen encoders are computed once for all of them."""

    def __init__(self, bench: Bench, engine: Engine) -> None:
        self.bench, self.engine = bench, engine
        self.test = TestSet(bench.test, bench.pretrained.encoder, engine.world.rank, engine.world.size)
        self.frozen: dict[str, Frozen] = {}

    def measure(self, size: int, number: int) -> dict[str, float]:
        """Accuracy of every column on draw `number` of `size` labels a class."""
        config = self.bench.config
        chosen = draw(self.bench.train.numbers, size, config.seed, number)
        measured: dict[str, float] = {}
        for method in config.protocol.methods:
            if method in ("full", "scratch"):
                measured[method] = self.trained(method, size, number, chosen)
            else:
                measured |= {name: self.probed(name, chosen) for name in COLUMNS[method]}
        return measured

    def trained(self, method: str, size: int, number: int, chosen: Any) -> float:
        config = self.bench.config.for_run(method, size)
        seed = seed_of(config.seed, "draw", number)
        task = fine_tune(config, method, self.bench, self.bench.train.select(chosen), self.engine, seed)
        return accuracy(task, self.test, self.engine)

    def probed(self, column: str, chosen: Any) -> float:
        probe, _, which = column.partition("_")
        if which not in self.frozen:
            self.frozen[which] = Frozen(self.bench, which, self.test, self.engine)
        return self.frozen[which].accuracy(probe, chosen)


def fine_tune(
    config: Config,
    method: str,
    bench: Bench,
    labelled: Labelled,
    engine: Engine,
    seed: int,
    progress: Tracks | None = None,
) -> Classification:
    """Train every weight: of the pretrained encoder, or of the same architecture from a fresh start."""
    scratch = method == "scratch"
    encoder = bench.pretrained.fresh(seed_of(seed, "weights")) if scratch else bench.pretrained.copy()
    task = build_task(config, encoder, labelled, seed_of(seed, "head"))
    train(config, task, labelled, engine, seed, progress)
    return task


class Frozen:
    """Features that no label has touched, and the probes on them."""

    def __init__(self, bench: Bench, which: str, test: TestSet, engine: Engine) -> None:
        """`which`: "" the pretrained encoder, "untrained" a fresh one, "raw" the input itself."""
        self.bench, self.which, self.engine = bench, which, engine
        config = bench.config
        fresh = which == "untrained"
        encoder = (
            bench.pretrained.fresh(seed_of(config.seed, "weights")) if fresh else bench.pretrained.copy()
        )
        self.task = build_task(config, encoder, bench.train, config.seed)
        self.features = torch.zeros(0)
        self.known: dict[int, int] = {}
        self.test = self.compute(test.batches())

    def compute(self, batches: Any) -> tuple[Tensor, Tensor]:
        if self.which == "raw":
            kept = list(batches)
            inputs = torch.cat([self.task.encoder.raw_features(batch) for batch in kept])
            return inputs, torch.cat([batch["class"] for batch in kept])
        return pooled_features(self.task, batches, self.engine)

    def accuracy(self, probe: str, chosen: np.ndarray) -> float:
        """Accuracy on the test set of a probe that knows the labels of the `chosen` training samples."""
        self.add([i for i in chosen.tolist() if i not in self.known])
        train = self.features[[self.known[i] for i in chosen.tolist()]]
        labels = torch.from_numpy(self.bench.train.numbers[chosen])
        if probe == "knn":
            return knn_accuracy(train, labels, *self.test, self.bench.config.protocol.neighbours)
        return linear_accuracy(train, labels, *self.test)

    def add(self, indices: list[int]) -> None:
        """Compute the features of training samples that no earlier draw had."""
        if not indices:
            return
        samples = TestSet(self.bench.train.select(np.array(indices)), self.task.encoder, 0, 1)
        new, _ = self.compute(samples.batches())
        self.known |= {index: len(self.known) + i for i, index in enumerate(indices)}
        self.features = torch.cat([self.features, new]) if len(self.features) else new


def all_labels(
    bench: Bench, everyone: Engine, report: Report
) -> tuple[list[dict[str, Any]], Classification | None]:
    """Every label once, all ranks training together."""
    config = bench.config
    test = TestSet(bench.test, bench.pretrained.encoder, everyone.world.rank, everyone.world.size)
    rows, tuned = [], None
    for method in config.protocol.methods:
        for column in COLUMNS[method]:
            if method in ("full", "scratch"):
                own, seed = config.for_run(method, None), seed_of(config.seed, method)
                steps = count_steps(own, len(bench.train))
                report(f"{column}: {steps:,} steps on {len(bench.train):,} labels")
                progress = TrainingProgress(steps) if everyone.world.rank == 0 else None
                task = fine_tune(own, method, bench, bench.train, everyone, seed, progress)
                if progress:
                    progress.close("finished")
                value = accuracy(task, test, everyone)
                tuned = task if method == "full" else tuned
            else:
                value = probe_alone(bench, column, everyone)
            rows.append(row(None, column, [value]))
            report(f"all {len(bench.train):,} labels:  {column} {100 * value:.1f}")
    return rows, tuned


def probe_alone(bench: Bench, column: str, everyone: Engine) -> float:
    """Probes are small: rank 0 measures, the others hear of it."""
    value = 0.0
    if everyone.world.rank == 0:
        alone = DDPEngine(bench.config.train, World(local_rank=everyone.world.local_rank))
        value = Drawing(bench, alone).probed(column, np.arange(len(bench.train)))
    return float(everyone.broadcast(value))
