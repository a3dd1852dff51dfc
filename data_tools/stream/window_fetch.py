"""What a node fetches for packed rows in windows: whole windows of its own, pieces of documents for rows of others'."""

from __future__ import annotations

from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.pieces import TokenReader
from data_tools.dataset.reader import Run
from data_tools.dataset.stretches import Stretch
from data_tools.order.packing import CutPlan, Rows
from data_tools.order.token_windows import TokenWindowPlan
from data_tools.order.window_order import WindowOrder
from data_tools.storage.prefetch import Needs

Int64Array = NDArray[np.int64]


class WindowFetch:
    """Of the rows of ``plan`` in ``order``."""

    def __init__(
        self,
        documents: TokenReader,
        plan: TokenWindowPlan | CutPlan,
        order: WindowOrder,
        nodes: int,
        node: int,
    ) -> None:
        self._documents, self._plan, self._order = documents, plan, order
        self._nodes, self._node = nodes, node

    @property
    def _dataset(self) -> Dataset:
        return self._documents.dataset

    def find_together(self, positions: Int64Array, rows: Int64Array, taken: Rows) -> list[Run]:
        """What is fetched with each piece of ``rows``, (pieces,), one of which stands at each of ``positions``."""
        if not self._dataset.remote:
            return [None] * len(taken.document)
        shards, numbers = self._dataset.locate(taken.document)
        if not self._dataset.whole:
            return list(self._dataset.find_together(shards, numbers, None))
        columns = self._find_stretches(positions, rows, taken, taken.document - numbers, shards)[1]
        return list(starmap(Stretch, zip(*(column.tolist() for column in columns), strict=True)))

    def needs(self, positions: Int64Array) -> Needs:
        """As of a PackedStream."""
        epochs, rows = self._order.indices(positions)
        taken = self._plan.take(rows)
        counts = np.diff(taken.row_start)
        epoch, position = np.repeat(epochs, counts), np.repeat(positions, counts)
        if not self._dataset.whole:
            yield from self._documents.segments(taken, epoch, position)
            return
        shards, numbers = self._dataset.locate(taken.document)
        window, columns = self._find_stretches(positions, rows, taken, taken.document - numbers, shards)
        once = columns[-1]
        shard_count = len(self._dataset.manifest.urls)
        key = ((epoch - epoch[:1]) * (self._plan.rows + 1) + window) * shard_count + shards
        key[once] = -1 - np.arange(np.count_nonzero(once))  # each piece is a stretch of its own
        _, before = np.unique(key, return_index=True)
        _, after = np.unique(key[::-1], return_index=True)
        fetched, cache = self._dataset.store.fetched, self._dataset.store.cache()
        for at in np.unique(np.concatenate([before, len(key) - 1 - after])).tolist():
            shard = int(shards[at])
            if fetched[shard]:
                stretch = Stretch(*(column[at].item() for column in columns))
                for segment in self._documents.stretch_segments(shard, stretch):
                    yield cache, segment, int(position[at])

    def _find_stretches(
        self, positions: Int64Array, rows: Int64Array, taken: Rows, starts: Int64Array, shards: Int64Array
    ) -> tuple[Int64Array, tuple[NDArray[np.generic], ...]]:
        """(first window that is fetched, columns of `Stretch`) of each piece, shapes (pieces,).

        ``starts``, ``shards``: the first document of the shard of each, and its number.
        """
        runs, chunk = self._order.find_runs(positions, self._nodes), self._order.layout.chunk
        document, token = self._plan.begins(runs.first * chunk)
        behind, end = self._plan.begins(np.minimum((runs.first + runs.many) * chunk, self._plan.rows))
        last = np.where(end > 0, behind, behind - 1)
        end = np.where(end > 0, end, -1)
        once = (runs.home != self._node) | (runs.row != rows)  # or it stands in for a row that is damaged
        counts = np.diff(taken.row_start)
        window, document, token, last, end, once = (
            np.repeat(column, counts) for column in (runs.first, document, token, last, end, once)
        )
        stops = starts + self._dataset.manifest.counts[shards]
        token = np.where(
            document >= starts, token, 0
        )  # of a window over several shards, what lies in this one
        end = np.where(last < stops, end, -1)
        document, last = np.maximum(document, starts), np.minimum(last, stops - 1)
        document, last = (np.where(once, taken.document, column) - starts for column in (document, last))
        token = np.where(once, taken.start, token)
        end = np.where(once, taken.start + taken.size, end)
        return window, (document, token, last, end, once)
