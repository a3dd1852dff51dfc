"""Hedged reads: what takes longer than almost all reads of its kind is asked for twice; the first answer counts.

One slow disk or connection of a store would otherwise hold up a whole step of all ranks.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeVar

from data_tools.storage import counters
from data_tools.storage.background import start_in_background, wait_for_first
from data_tools.storage.handles import renew_when_forked

T = TypeVar("T")

QUANTILE = 0.95
RECENT = 128
"""Reads of a kind whose times are remembered."""
ENOUGH = 20
"""Reads of a kind before one of them can be called slow."""
KINDS = 256
LEAST = 0.1
"""Seconds that no second request comes before."""
SHARE = 0.05
"""Of all requests, what may be second ones: a store that is slow as a whole is not asked twice as much."""


class Latencies:
    """Seconds that recent reads took, by kind (the host, and the magnitude of the size), and how many were hedged."""

    def __init__(self) -> None:
        self._recent: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._reads = self._hedges = 0
        self._lock = threading.Lock()
        renew_when_forked(self)

    def begin_in_child(self) -> None:
        """What is known holds here too, but whoever held the lock is not here."""
        self._lock = threading.Lock()

    def add(self, kind: Hashable, seconds: float) -> None:
        """Remember how long a read took."""
        with self._lock:
            self._reads += 1
            self._recent.setdefault(kind, deque(maxlen=RECENT)).append(seconds)
            self._recent.move_to_end(kind)
            if len(self._recent) > KINDS:
                self._recent.popitem(last=False)

    def limit(self, kind: Hashable) -> float | None:
        """Seconds above which a read of this kind is slow; None while too few are known."""
        with self._lock:
            recent = sorted(self._recent.get(kind, ()))
        return max(LEAST, recent[int(QUANTILE * len(recent))]) if len(recent) >= ENOUGH else None

    def may_hedge(self) -> bool:
        """Whether one more second request keeps within their share; it is counted then."""
        with self._lock:
            allowed = self._hedges < SHARE * (self._reads + ENOUGH)
            self._hedges += allowed
        return allowed


_latencies = Latencies()


def read_hedged(read: Callable[[], T], kind: Hashable, latencies: Latencies | None = None) -> T:
    """What ``read`` gives, by a second call of it where the first takes unusually long.

    Raises what both raise, or the only one does; StoppedError once nobody waits for it any more.
    """
    latencies, begun = latencies or _latencies, time.monotonic()
    first = start_in_background(read)
    running: list[Future[T]] = [first]
    done = wait_for_first(running, latencies.limit(kind))
    if not done and latencies.may_hedge():
        counters.counts.hedges += 1
        running.append(start_in_background(read))
    while True:
        done = done or wait_for_first(running)
        for future in done:
            if future.exception() is None or len(running) == 1:
                result = future.result()
                latencies.add(kind, time.monotonic() - begun)
                counters.counts.requests += 1
                counters.counts.hedges_won += future is not first
                return result
            running.remove(future)
        done = []
