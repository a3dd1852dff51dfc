"""The known future of a rank: which segments it will need, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.storage.segments import Segment, SegmentCache

Int64Array = NDArray[np.int64]

Needs = Iterator[tuple[SegmentCache, Segment, int]]  # what positions need: (cache, segment, position)


@dataclass
class _Visit:
    """A segment's uses in one epoch, from position ``first`` to ``last``."""

    epoch: int
    first: int
    last: int


class ReadAhead:
    """Walks the known future of one rank: expects segments before they are needed, lets go of them after."""

    def __init__(self, needs: Callable[[Int64Array], Needs], epoch: int, window: int) -> None:
        """``needs``: what an array of positions reads; ``epoch``: its length; ``window``: positions to look ahead."""
        self._needs, self._epoch, self._window = needs, epoch, window
        self._planned = -1  # positions before this one are in the plan
        self._waiting: deque[tuple[SegmentCache, Segment, int]] = deque()
        self._visits: dict[tuple[int, str], tuple[SegmentCache, Segment, deque[_Visit]]] = {}
        self._caches: dict[int, SegmentCache] = {}

    def advance(
        self, position: int, following: Callable[[int], int], mine: Callable[[int], Int64Array]
    ) -> None:
        """The steps before ``position`` are done.

        ``mine(p)`` are this rank's positions of the step at p, and ``following(p)`` is where the next one starts.
        """
        self._planned = max(self._planned, position)
        while self._planned < position + self._window:
            for cache, segment, use in self._needs(mine(self._planned)):
                self._add(cache, segment, use)
            self._planned = following(self._planned)
        self._let_go(position)
        while self._waiting:
            cache, segment, use = self._waiting[0]
            if use >= position and not cache.expect(segment, use):
                break
            self._waiting.popleft()

    def _add(self, cache: SegmentCache, segment: Segment, use: int) -> None:
        self._caches[id(cache)] = cache
        _, _, visits = self._visits.setdefault((id(cache), segment.name), (cache, segment, deque()))
        if visits and visits[-1].epoch == use // self._epoch:
            visits[-1].last = max(visits[-1].last, use)
            return
        visits.append(_Visit(use // self._epoch, use, use))
        if len(visits) == 1:
            self._waiting.append((cache, segment, use))

    def close(self) -> None:
        """Stop fetching ahead; the plan begins anew with the next `advance`."""
        for cache in self._caches.values():
            cache.close()
        self._waiting.clear()
        self._visits.clear()
        self._planned = -1

    def _let_go(self, position: int) -> None:
        for key, (cache, segment, visits) in list(self._visits.items()):
            if visits[0].last >= position:
                continue
            visits.popleft()
            cache.finished(segment)
            if visits:
                self._waiting.append((cache, segment, visits[0].first))
            else:
                del self._visits[key]
