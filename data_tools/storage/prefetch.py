"""The known future of a rank: which segments it will need, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.storage.segments import Segment, SegmentCache

Int64Array = NDArray[np.int64]

AHEAD = 1 << 30  # bytes, of all ranks together

STEPS_AHEAD = 4  # at least

AT_A_TIME = 1 << 16  # positions planned together

Needs = Iterator[
    tuple[SegmentCache, Segment, int]
]  # what positions need, in their order: (cache, segment, position)


@dataclass
class _Visit:
    """A segment's uses in one epoch, from position ``first`` to ``last``."""

    epoch: int
    first: int
    last: int


def positions_ahead(sample_bytes: float, epoch: int) -> int:
    """Positions that hold AHEAD bytes of samples this large, at most one epoch of them and at least a thousand."""
    return max(1024, min(epoch, int(AHEAD / max(1.0, sample_bytes))))


class ReadAhead:
    """Walks the known future of one rank: expects segments before they are needed, lets go of them after.

    All lanes come to their next chunks at the same position. These are asked for one after another in the positions
    before, as slowly as will do for each to be there some time before its first use: the lanes take turns.
    """

    def __init__(self, needs: Callable[[Int64Array], Needs], epoch: int, ahead: int, turn: int = 0) -> None:
        """``needs``: what an array of positions reads; ``epoch``: its length; ``ahead``: positions to look ahead,
        beyond the ``turn`` after which all lanes have come to other chunks."""
        self._needs, self._epoch, self._ahead, self._turn = needs, epoch, ahead, turn
        self._planned = -1  # positions before this one are in the plan
        self._credit = 0.0  # bytes that could have been asked for but for a segment's being larger
        self._waiting: list[tuple[SegmentCache, Segment, int]] = []
        self._visits: dict[tuple[int, str], tuple[SegmentCache, Segment, deque[_Visit]]] = {}
        self._caches: dict[int, SegmentCache] = {}

    def advance(
        self, position: int, following: Callable[[int], int], mine: Callable[[int], Int64Array]
    ) -> None:
        """The steps before ``position`` are done.

        ``mine(p)`` are this rank's positions of the step at p, and ``following(p)`` is where the next one starts.
        """
        step = following(position) - position
        ahead = max(self._ahead, STEPS_AHEAD * step)
        self._planned = max(self._planned, position)
        while self._planned < position + self._turn + ahead:
            steps: list[Int64Array] = []
            while self._planned < position + self._turn + ahead and sum(map(len, steps)) < AT_A_TIME:
                steps.append(mine(self._planned))
                self._planned = following(self._planned)
            for cache, segment, use in self._needs(np.concatenate(steps)):
                self._add(cache, segment, use)
        self._let_go(position)
        self._waiting = sorted(
            (need for need in self._waiting if need[2] >= position), key=lambda need: need[2]
        )
        asked = 0
        for cache, segment, use in self._waiting[: self._count_due(position + ahead // 2, step)]:
            if not cache.expect(segment, use):
                break
            asked += 1
        del self._waiting[:asked]

    def _count_due(self, there: int, step: int) -> int:
        """How many of the waiting segments to ask for in a step, so that those used at ``there`` are with us now.

        Of all constant rates at which every one comes in time, the slowest.
        """
        if not self._waiting:
            return 0
        total = np.cumsum([segment.bytes for _, segment, _ in self._waiting])
        left = np.array([use for _, _, use in self._waiting]) - there  # positions until each is to be with us
        owed = (total - self._credit) * step / np.maximum(left, step)
        allowed = self._credit + max(0.0, float(owed.max()))
        count = int(np.searchsorted(total, allowed * (1 + 1e-9), side="right"))
        self._credit = allowed - (float(total[count - 1]) if count else 0.0)
        return count

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
        """Stop fetching ahead, and keep nothing for its sake; the plan begins anew with the next `advance`."""
        for cache in self._caches.values():
            cache.close()
        for cache, segment, _ in self._visits.values():
            cache.finished(segment)
        self._waiting.clear()
        self._visits.clear()
        self._planned, self._credit = -1, 0.0

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
