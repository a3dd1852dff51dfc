"""The share of a step in which ranks talk to each other, measured by torch's profiler in one step now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[int, int]
"""Start and end in nanoseconds."""
COLLECTIVES = ("gloo:", "ncclDevKernel", "ncclKernel", "rcclGenericKernel")
"""How the profiler names a collective in flight: a range on the host (gloo), a kernel on the device (NCCL, RCCL)."""


class CommunicationSampler:
    """Measures the first two steps (the first one compiles, and a job may log it) and then one in `every`."""

    def __init__(self, every: int, ranks: int) -> None:
        self.every = every
        self.ranks = ranks
        self.share: float | None = 0.0 if ranks == 1 else None
        """Of the step measured last; a process that is alone has nobody to talk to."""
        self.exposed: float | None = None
        """The part of it in which the device computes nothing meanwhile; None on a CPU."""
        self.seconds = 0.0
        """How long the step took that was measured last, without the measuring around it."""

    def due(self, step: int) -> bool:
        return self.ranks > 1 and self.every > 0 and (step <= 2 or step % self.every == 0)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Around a whole step."""
        cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            started = time.time_ns()  # the profiler's clock
            yield
            if cuda:
                torch.cuda.synchronize()
            step = started, max(started + 1, time.time_ns())
        self.seconds = 1e-9 * (step[1] - step[0])
        talking, computing = [], []
        for event in profiler.profiler.kineto_results.events():
            interval = (event.start_ns(), event.start_ns() + event.duration_ns())
            if event.name().startswith(COLLECTIVES):
                talking.append(interval)
            elif event.device_type() == torch.autograd.DeviceType.CUDA:
                computing.append(interval)
        self.share = 1e-9 * covered(talking, step) / self.seconds
        if cuda:
            alone = covered([*talking, *computing], step) - covered(computing, step)
            self.exposed = 1e-9 * alone / self.seconds


def covered(intervals: Iterable[Interval], within: Interval) -> int:
    """Nanoseconds `within` an interval that lie in at least one of the others."""
    total, (reached, last) = 0, within
    for start, end in sorted(intervals):
        total += max(0, min(end, last) - max(start, reached))
        reached = max(reached, end)
    return total
