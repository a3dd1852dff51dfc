"""What a logged line says of speed: throughput, model FLOPs, memory, and the time spent waiting and talking."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple

import torch

from data_tools.storage import counters
from data_tools.storage.counters import Counts
from pretrain.engine.base import Engine
from pretrain.metering.communication import CommunicationSampler
from pretrain.metering.profiling import Profiling

GIB = 2**30
MIB = 2**20
CLOCKED = frozenset({
    "samples_per_second", "tokens_per_second", "tflops_per_second", "mfu", "peak_memory_gib", "data_wait",
    "straggler_wait", "slowest_rank", "communication", "communication_exposed", "data_reading", "data_decoding",
    "data_transforming", "read_mib_per_second", "fetched_mib_per_second", "cache_hits", "cache_misses",
    "cache_evictions", "fetch_retries", "fetch_hedges",
})  # fmt: skip
"""What `Meter.line` tells: it depends on the machine and the moment, and not on what is learned."""


class Meter:
    """Adds up, between two logged lines, what this rank does; what is not training is left out of the time."""

    def __init__(
        self,
        engine: Engine,
        sampler: CommunicationSampler | None = None,
        profiling: Profiling | None = None,
        tokens_per_sample: int | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        """
        Args:
            tokens_per_sample: of a text, padding included.
            flops_per_sample: model FLOPs; only rank 0 needs them.
            peak_flops: of one device, a second.
        """
        self.engine = engine
        self.sampler = sampler or CommunicationSampler(0, engine.world.size)
        self.profiling = profiling
        self.tokens_per_sample = tokens_per_sample
        self.flops_per_sample = flops_per_sample
        self.peak_flops = peak_flops
        self.uses_cache = False  # of remote data; the same on all ranks
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.started = time.perf_counter()
        self.samples = 0
        self.waiting = {"data": 0.0, "ranks": 0.0}
        self.left_out = 0.0
        self.counted = counters.total()

    @contextmanager
    def wait_for(self, what: str) -> Iterator[None]:
        """Around waiting for `data` or for the other `ranks`."""
        started = time.perf_counter()
        yield
        self.waiting[what] += time.perf_counter() - started

    @contextmanager
    def leave_out(self) -> Iterator[None]:
        """Around what is not training: probes, pictures, measuring itself."""
        started = time.perf_counter()
        yield
        self.left_out += time.perf_counter() - started

    @contextmanager
    def step(self, step: int, samples: int) -> Iterator[None]:
        """Around step number `step` (1 is the first) over a global batch of `samples`."""
        self.samples += samples
        profiling = self.profiling if self.profiling and self.profiling.covers(step) else None
        if profiling:
            with self.leave_out():
                profiling.start()
            yield
            if step == profiling.last:
                with self.leave_out():
                    profiling.stop()
        elif self.sampler.due(step):
            started = time.perf_counter()
            with self.sampler.measure():
                yield
            self.left_out += time.perf_counter() - started - self.sampler.seconds
        else:
            yield

    def close(self) -> None:
        """Write what is being recorded."""
        if self.profiling:
            self.profiling.stop()

    def line(self) -> dict[str, float]:
        """The numbers since the last line, over all ranks, and begin anew. Called on all ranks together."""
        world = self.engine.world
        seconds = max(time.perf_counter() - self.started - self.left_out, 1e-9)
        own = [self.waiting["data"] / seconds, self.waiting["ranks"] / seconds, peak_memory()]
        own += astuple(counters.total() - self.counted)
        table = torch.zeros(world.size, len(own), dtype=torch.float64)  # a row each rank
        table[world.rank] = torch.tensor(own, dtype=torch.float64)
        data, ranks, memory, *counts = self.engine.sum(table).unbind(1)
        rate = self.samples / seconds
        values = {"samples_per_second": rate}
        if self.tokens_per_sample:
            values["tokens_per_second"] = rate * self.tokens_per_sample
        if self.flops_per_sample is not None:
            flops = rate * self.flops_per_sample / world.size
            values["tflops_per_second"] = flops / 1e12
            if self.peak_flops:
                values["mfu"] = flops / self.peak_flops
        values["peak_memory_gib"] = memory.max().item() / GIB
        values["data_wait"] = data.mean().item()
        sums = Counts(*torch.stack(counts).sum(1).tolist())
        values |= self.data_values(sums, seconds)
        if world.size > 1:
            values["straggler_wait"] = (ranks.max() - ranks.min()).item()
            values["slowest_rank"] = int(ranks.argmin())
        if self.sampler.share is not None:
            values["communication"] = self.sampler.share
        if self.sampler.exposed is not None:
            values["communication_exposed"] = self.sampler.exposed
        self.restart()
        return values

    def data_values(self, counts: Counts, seconds: float) -> dict[str, float]:
        """Where the workers of the data spend their time, and what is read, of all ranks' counts in so many seconds."""
        transforming = counts.making - counts.reading - counts.decoding
        busy = {
            "reading": counts.reading,
            "decoding": counts.decoding,
            "transforming": max(0.0, transforming),
        }
        values = {f"data_{what}": total / seconds / self.engine.world.size for what, total in busy.items()}
        values["read_mib_per_second"] = counts.read_bytes / MIB / seconds
        self.uses_cache |= bool(counts.fetched_bytes or counts.cache_hits or counts.cache_misses)
        if self.uses_cache:
            values["fetched_mib_per_second"] = counts.fetched_bytes / MIB / seconds
            values |= {
                f"cache_{what}": int(getattr(counts, f"cache_{what}"))
                for what in ("hits", "misses", "evictions")
            }
            values |= {f"fetch_{what}": int(getattr(counts, what)) for what in ("retries", "hedges")}
        return values


def peak_memory() -> float:
    """Bytes: the most of the device's memory since the last call, or on a CPU of this process since its start."""
    if torch.cuda.is_available():
        peak = float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return peak
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
