"""How many samples a second this machine and this storage give, where the time goes, and which workers are advised."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_tools.dataset.dataset import Dataset, Int64Array
from data_tools.decode.options import DecodeOptions
from data_tools.decode.resize import resize
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.storage import counters
from data_tools.stream.collate import FieldError, collate
from data_tools.stream.loader import Loader, make_micro_batch
from data_tools.stream.samples import Stream

READERS = 8  # threads that ask the storage at once
READ_IN_TURN = 8  # by one reader, before it looks which ones are next
READ_AT_MOST = 4096  # samples that are read for the storage's rate; the same ones are read again from memory
GOOD_ENOUGH = 0.9  # of the best rate: more workers than that takes are not advised
WAITS = 0.7  # of the time in which Python computed: below, the storage was waited for
ENOUGH_SECONDS = 5.0  # for processes too: each takes seconds to start, which come on top
SCALES = 0.75  # of what so many cores should give: below, threads stand in each other's way


@dataclass(frozen=True)
class Rate:
    """Samples of so many bytes in so many seconds."""

    what: str
    samples: int
    seconds: float
    bytes: int = 0

    @property
    def per_second(self) -> float:
        return self.samples / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Workers:
    """A loader's workers, and the samples a second that they gave."""

    kind: str
    number: int
    per_second: float


@dataclass(frozen=True)
class Bench:
    """What was measured; rates are samples a second."""

    storage: Rate
    is_cold: bool
    """Whether the storage was read, and not this machine's memory or its cache of remote data."""
    is_slow: bool
    """Whether the readers waited for the storage, and not for each other."""
    parts: list[Rate]
    """Of one worker, from memory: reading, decoding, transforming and collating."""
    cpu_seconds: float
    """Of one sample."""
    loaders: list[Workers]
    cores: int
    notes: list[str] = field(default_factory=list)

    @property
    def perfect(self) -> float:
        """What all cores give when none ever waits, or the storage if that is less; at least the best loader."""
        cores = self.cores / max(self.cpu_seconds, 1e-9)
        estimate = min(cores, self.storage.per_second) if self.is_slow else cores
        return max(estimate, *(workers.per_second for workers in self.loaders))

    @property
    def advised(self) -> Workers:
        """The fewest workers that come near to the best rate; at least one, for training must not wait."""
        some = [workers for workers in self.loaders if workers.number]
        best = max(workers.per_second for workers in some)
        return next(workers for workers in some if workers.per_second >= GOOD_ENOUGH * best)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "storage": self.storage.per_second,
            "storage_bytes_per_second": self.storage.bytes / max(self.storage.seconds, 1e-9),
            "cold": self.is_cold,
            "storage_was_waited_for": self.is_slow,
            "one_worker": {part.what: part.per_second for part in self.parts},
            "cpu_seconds_per_sample": self.cpu_seconds,
            "loaders": [vars(workers) for workers in self.loaders],
            "cores": self.cores,
            "perfect": self.perfect,
            "advised": vars(self.advised),
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Prepare:
    """The transform: all fields that can be batched, pictures resized to ``image_size`` squares where it is given."""

    image_size: int | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        kept: dict[str, Any] = {
            name: value
            for name, value in sample.items()
            if not name.startswith("__") and isinstance(value, np.ndarray | int | float | str)
        }
        if self.image_size and isinstance(kept.get("image"), np.ndarray):
            picture = np.array(kept["image"])  # torch warns of what it may not write to
            kept["image"] = resize(picture, self.image_size, self.image_size)
        return kept


def collate_or_keep(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch where that is possible without a recipe's transform, else the examples as they are."""
    try:
        return collate(examples)
    except FieldError:
        return {"examples": examples}


def bench(
    dataset: Dataset, seconds: float = 10.0, batch_size: int = 64, image_size: int | None = None
) -> Bench:
    """Measure for about ``seconds``.

    Where threads do not scale, worker processes are measured too, unless ``seconds`` are few: starting them comes on
    top. Raises UserError when nothing can be read.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker is one core
    try:
        return _bench(dataset, seconds, batch_size, image_size)
    finally:
        torch.set_num_threads(threads)


def _bench(dataset: Dataset, seconds: float, batch_size: int, image_size: int | None) -> Bench:
    stream = Stream(dataset)
    storage, positions, is_cold, is_slow = read_storage(stream, 0.2 * seconds)
    if not len(positions):
        raise UserError("no sample could be read; run `python -m data_tools verify` on the data")
    transform = Prepare(image_size)
    parts, cpu_seconds, notes = time_parts(stream, transform, positions, batch_size, 0.2 * seconds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = sorted({0, cores, *(2**i for i in range(int(math.log2(max(cores, 1))) + 1))})
    share = 0.6 * seconds / (len(numbers) + 1)
    loaders, start = [], 0
    for kind, number in [("thread", number) for number in numbers]:
        workers, start = run_loader(stream, transform, batch_size, kind, number, start, share)
        loaders.append(workers)
    found = Bench(storage, is_cold, is_slow, parts, cpu_seconds, loaders, cores, notes)
    if (
        cores > 1
        and seconds >= ENOUGH_SECONDS
        and max(workers.per_second for workers in loaders) < SCALES * found.perfect
    ):
        workers, _ = run_loader(stream, transform, batch_size, "process", cores, start, share)
        loaders.append(workers)
    return found


def read_storage(stream: Stream, seconds: float) -> tuple[Rate, Int64Array, bool, bool]:
    """(rate of raw reads by several readers, positions read, whether that was the storage, whether they waited)."""
    dataset = stream.dataset
    raw = Stream(dataset.with_options(DecodeOptions(raw=True)), stream.seed, stream.memory)
    positions = np.arange(min(READ_AT_MOST, len(dataset)), dtype=np.int64)
    if dataset.remote:  # one sample of each segment: the others come with it
        first: dict[str, int] = {}
        for _, segment, position in stream.needs(positions):
            first.setdefault(segment.name, position)
        positions = np.array(sorted(first.values()), dtype=np.int64)
        is_cold = False
    else:
        is_cold = drop_page_cache(dataset, np.unique(dataset.locate(stream.order.indices(positions)[1])[0]))
    parts = [positions[i : i + READ_IN_TURN] for i in range(0, len(positions), READ_IN_TURN)]
    before, began, cpu = counters.total(), time.perf_counter(), time.process_time()

    def read(part: Int64Array) -> Int64Array:
        """Those of the positions that were read in time."""
        done = 0
        for _ in raw.samples(part if time.perf_counter() - began < seconds else part[:0]):
            done += 1
            if time.perf_counter() - began > seconds:
                break
        return part[:done]

    with ThreadPoolExecutor(READERS, thread_name_prefix="bench") as readers:
        done = np.concatenate(list(readers.map(read, parts)))
    took, counts = time.perf_counter() - began, counters.total() - before
    is_slow = time.process_time() - cpu < WAITS * took
    what = f"storage, {READERS} readers"
    if counts.fetched_bytes:
        samples = round(counts.fetched_bytes / max(1.0, dataset.sample_bytes))
        return Rate(what, samples, took, counts.fetched_bytes), done, True, is_slow
    return Rate(what, len(done), took, counts.read_bytes), done, is_cold, is_slow


def drop_page_cache(dataset: Dataset, shards: Int64Array) -> bool:
    """Have the kernel forget shards on this machine; whether it was asked to for all of them."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for shard in shards.tolist():
        handle = os.open(dataset.location(shard), os.O_RDONLY)
        try:
            os.fdatasync(handle)  # what has not been written yet cannot be forgotten
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def time_parts(
    stream: Stream, transform: Prepare, positions: Int64Array, batch_size: int, seconds: float
) -> tuple[list[Rate], float, list[str]]:
    """(rates of reading again, decoding, transforming and collating in this thread, CPU seconds of a sample, notes)."""
    notes: list[str] = []
    make_micro_batch(stream, transform, 0, positions[:1], collate_or_keep)  # libraries are loaded
    examples = [
        transform(sample, np.random.default_rng(0)) for sample in stream.samples(positions[:batch_size])
    ]
    try:
        collate(examples)
    except FieldError as error:
        notes.append(f"batches were not collated: {error}; `--image-size` makes pictures equal")
    before, began, cpu = counters.total(), time.perf_counter(), time.process_time()
    samples = 0
    while not samples or time.perf_counter() - began < seconds:
        part = positions[samples % len(positions) :][:batch_size]
        make_micro_batch(stream, transform, 0, part, collate_or_keep)
        samples += len(part)
    cpu_seconds = (time.process_time() - cpu) / samples
    counts = counters.total() - before
    rest = counts.making - counts.reading - counts.decoding
    return (
        [
            Rate("reading again", samples, counts.reading, counts.read_bytes),
            Rate("decoding", samples, counts.decoding),
            Rate("transforming, collating", samples, rest),
        ],
        cpu_seconds,
        notes,
    )


def run_loader(
    stream: Stream, transform: Prepare, batch_size: int, kind: str, workers: int, start: int, seconds: float
) -> tuple[Workers, int]:
    """(what a loader with such workers gives, the position after it); until its first batch it is not timed."""
    loader = Loader(
        stream, transform, 0, batch_size, workers=workers, worker_kind=kind, start=start,
        max_damage_rate=1.0, collate=collate_or_keep,
    )  # fmt: skip
    steps = iter(loader)
    next(steps)
    began, first = time.perf_counter(), loader.position
    while loader.position == first or time.perf_counter() - began < seconds:
        next(steps)
    rate = (loader.position - first) / (time.perf_counter() - began)
    loader.close()
    return Workers(kind, workers, rate), loader.position


def describe(found: Bench) -> list[str]:
    """The table and the advice, a line each."""
    cold = "cold" if found.is_cold else "warm: from this machine's memory or cache"
    rows = [(f"{found.storage.what} ({cold})", found.storage.per_second, found.storage)]
    rows += [(f"one worker: {part.what}", part.per_second, part) for part in found.parts]
    lines = [f"{'':44s} {'samples/s':>11s} {'MB/s':>9s}"]
    for name, rate, source in rows:
        size = f"{source.bytes / max(source.seconds, 1e-9) / 1e6:9,.1f}" if source.bytes else ""
        lines.append(f"{name:44s} {rate:11,.0f} {size}".rstrip())
    for workers in found.loaders:
        name = f"loader, {workers.number} {_plural(workers)}" if workers.number else "loader without workers"
        lines.append(f"{name:44s} {workers.per_second:11,.0f}")
    lines.append(f"{f'a perfect loader, {found.cores} core(s)':44s} {found.perfect:11,.0f}")
    seconds = {part.what: part.seconds / part.samples for part in found.parts}
    total = sum(seconds.values())
    shares = ", ".join(f"{100 * part / total:.0f} % {what}" for what, part in seconds.items())
    lines.append(f"a sample costs one worker {1000 * total:,.3g} ms: {shares}")
    lines += found.notes
    advised = found.advised
    limit = "storage" if found.is_slow and found.perfect >= found.storage.per_second else "cores"
    lines.append(
        f"advised: data.workers={advised.number}"
        + (f" data.worker_kind={advised.kind}" if advised.kind != "thread" else "")
        + f", {advised.per_second:,.0f} samples/s, {advised.per_second / max(found.perfect, 1e-9):.0%} of a perfect"
        f" loader, whose limit is the {limit}"
    )
    return lines


def _plural(workers: Workers) -> str:
    ending = "" if workers.number == 1 else "es" if workers.kind == "process" else "s"
    return f"{workers.kind}{ending}"
