"""What this process has read, fetched and spent its time on, worker threads and processes included."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

TIMED = 7  # clocks cost as much as the rest of counting; a prime falls into step with no batch size


@dataclass(slots=True)
class Counts:
    """Sums since the process started, or what came to them between two moments."""

    samples: int = 0
    """Read, wherever they lie; documents of packed rows count one by one."""
    read_bytes: int = 0
    fetched_bytes: int = 0
    """From other machines, read ahead included."""
    requests: int = 0
    """Range reads that other machines have answered."""
    retries: int = 0
    """Requests made again after an error that may pass."""
    hedges: int = 0
    """Second requests for what took unusually long."""
    hedges_won: int = 0
    """Those that were answered before the first."""
    cache_hits: int = 0
    """Samples, or documents of a packed row, that lay in the cache of remote data when they were needed."""
    cache_misses: int = 0
    """Those for which somebody had to wait, because their segment was still to be fetched."""
    cache_evictions: int = 0
    """Segments that were dropped from the cache to make room."""
    reading: float = 0.0
    """Seconds of all workers together in which samples were read or waited for, judged by one sample in TIMED."""
    decoding: float = 0.0
    making: float = 0.0
    """Seconds in which micro-batches were made: reading, decoding, transforming and collating."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in Counts.__slots__))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(other, name) for name in Counts.__slots__))


counts = Counts()
"""Of this process. Threads add to it without a lock: that costs nothing, and at worst a lost addition."""


def total() -> Counts:
    """The sums as they are now."""
    return dataclasses.replace(counts)


def add(new: Counts) -> None:
    """Add what another process has counted."""
    for name in Counts.__slots__:
        setattr(counts, name, getattr(counts, name) + getattr(new, name))


_sent = Counts()


def take_new() -> Counts:
    """What has come to the sums since this was last called: what a worker process sends along with its work."""
    global _sent
    now = total()
    new, _sent = now - _sent, now
    return new
