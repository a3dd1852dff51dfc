"""Documents packed into rows of equal length: a row, too, is a pure function of (seed, data set, position)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import Damage, DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.pieces import TokenReader, refuse_without_tokens
from data_tools.dataset.reader import Run
from data_tools.decode.options import DecodeOptions
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.order.packing import WINDOW, CutPlan, RowPlan, Rows, find_stretches
from data_tools.order.permutation import derive_key
from data_tools.order.sharing import Runs, find_runs
from data_tools.order.shuffle import CHUNK_BYTES, ORDER_VERSION, Order, choose_layout
from data_tools.order.token_windows import TOKEN_WINDOWS, TokenWindowPlan
from data_tools.order.window_order import (
    WINDOWS_VERSION,
    WindowOrder,
    choose_window_layout,
    count_window_rows,
)
from data_tools.storage.prefetch import Needs, ReadAhead, positions_ahead
from data_tools.storage.urls import redacted
from data_tools.stream.packing_table import find_row_plan
from data_tools.stream.samples import _STAND_IN, ATTEMPTS, Stream, recognise
from data_tools.stream.window_fetch import WindowFetch

log = logging.getLogger(__name__)
Int64Array = NDArray[np.int64]
STRETCH_BYTES = CHUNK_BYTES
"""Of remote documents that are fetched at once."""
Piece = tuple[
    int, int, int, int, Run
]  # shard, number among its valid samples, first token, tokens, fetched with it


class PackedStream:
    """Rows of ``length`` tokens packed from the documents of a stream's data set.

    The packing is a table over the manifest (best fit over windows of documents when lengths are in the sidecar,
    else concatenate and cut), the same in every epoch; the *rows* are what is shuffled. So a row, like a sample, is
    a pure function of (seed, data set, position), and every epoch has the same number of rows.
    """

    def __init__(
        self, stream: Stream, length: int, method: str | None = None, window: int | None = None
    ) -> None:
        """``method``: "best_fit" or "cut"; by default by whether the lengths are known.

        ``window``: documents packed together, as version 1 of the order has it, also where data are large.
        """
        if length < 1:
            raise UserError(f"length={length}: rows must have at least one token")
        self.dataset, self.seed, self.length = stream.dataset, stream.seed, length
        self.fingerprint = stream.fingerprint
        known = self.dataset.manifest.has_length
        self.method = method or ("best_fit" if known else "cut")
        self._memory, self._window = stream.memory, window or WINDOW
        self._data_bytes = self.dataset.sample_bytes * len(self.dataset)
        self._documents = TokenReader(self.dataset)
        self._counting = np.arange(length, dtype=np.int32)
        self._stretch = stretch_documents(self.dataset.sample_bytes, self._window)
        self.share_among(1, 0)
        large = self._data_bytes > stream.memory
        self._use_version(WINDOWS_VERSION if large and window is None else ORDER_VERSION)

    def _use_version(self, version: int) -> None:
        """Plan and order the rows: by windows of documents, or of tokens, which a cluster fetches once."""
        self.version = version
        if version == ORDER_VERSION:
            self.plan = self._find_plan(self.method, self._window)
        elif self.method == "best_fit":
            size = partial(count_window_rows, data_bytes=int(self._data_bytes), length=self.length)
            self.plan = self._find_plan(TOKEN_WINDOWS, size)
        else:
            self.plan = self._find_plan("cut", WINDOW)
        rows = self.samples_per_epoch = self.plan.rows
        if not rows:
            raise UserError("the data set holds no tokens; tokenize it with `python -m data_tools tokenize`")
        self.row_bytes = self._data_bytes / rows
        if version == ORDER_VERSION:
            layout = choose_layout(rows, self.row_bytes, self._memory)
            self.order: Order | WindowOrder = Order(np.array([rows]), layout, self.seed)
        else:
            chunk = count_window_rows(self.plan.tokens, int(self._data_bytes), self.length)
            windows = choose_window_layout(chunk, self.row_bytes, self._memory)
            self.order = WindowOrder(rows, windows, self.seed)
            # the windows that one node reads in turn, eight in a file, or a seventh of them by seven nodes
            at_once = -(-windows.lanes // max(1, windows.group - 1)) if self.dataset.remote else windows.lanes
            self.dataset.use_segments(1, at_once)
        log.info(
            "packing (%s): %d rows of %d tokens, %.2f %% full",
            self.method, rows, self.length, 100 * self.efficiency,
        )  # fmt: skip

    def _find_plan(self, method: str, window: int | Callable[[int], int]) -> RowPlan:
        known, data = self.dataset.manifest.has_length, self.dataset
        lengths = data.read_lengths if known else partial(measure_lengths, data)
        return find_row_plan(
            lengths, len(data), identify_lengths(data), self.length, method, window, data.folder
        )

    def share_among(self, nodes: int, node: int) -> None:
        """As of a Stream."""
        self._nodes, self._node = nodes, node

    def homes(self, positions: Int64Array, nodes: int) -> Int64Array | None:
        """Which of ``nodes`` best takes each position, shape (n,); None where it makes no difference."""
        if not self._has_runs:
            return None
        if isinstance(self.order, WindowOrder):
            return self.order.homes(positions, nodes)
        return find_runs(self.order, positions, nodes).home

    @property
    def _windows(self) -> WindowFetch | None:
        """What this node fetches where the rows come in windows of tokens."""
        if not isinstance(self.order, WindowOrder):
            return None
        assert isinstance(self.plan, TokenWindowPlan | CutPlan)
        return WindowFetch(self._documents, self.plan, self.order, self._nodes, self._node)

    @property
    def _has_runs(self) -> bool:
        chosen = self.version != ORDER_VERSION and not self.dataset.whole
        return self.dataset.remote and self.order.layout.turn > 0 and not chosen

    def _runs(self, positions: Int64Array, pieces: Rows) -> Runs | None:
        """What this node fetches with the documents of the rows at ``positions``, (pieces,).

        That is the stretch that a document lies in, or the document alone where the row is another node's by right.
        None where it goes by the chunks of each shard.
        """
        if not self._has_runs:
            return None
        assert isinstance(self.order, Order)
        rows = find_runs(self.order, positions, self._nodes, self._node)
        counts = np.diff(pieces.row_start)
        documents, home = pieces.document, np.repeat(rows.home, counts)
        shards, numbers = self.dataset.locate(documents)
        starts = documents - numbers
        first, stop = find_stretches(
            documents, starts, starts + self.dataset.manifest.counts[shards], self._stretch, self._window
        )
        away = home != self._node
        first, stop = np.where(away, documents, first), np.where(away, documents + 1, stop)
        return Runs(np.repeat(rows.epoch, counts), documents, home, first, stop)

    @property
    def efficiency(self) -> float:
        """Real tokens / slots."""
        return self.plan.efficiency

    def sample(self, position: int) -> Sample:
        """The row at a position ≥ 0: ``tokens``, ``document_ids``, ``position_ids`` (length,) int32, its documents."""
        return next(self.samples(np.array([position], dtype=np.int64)))

    def samples(self, positions: Int64Array) -> Iterator[Sample]:
        """The rows at ``positions`` ≥ 0, shape (n,), as `sample` gives them, with ``__damage__`` where there is any."""
        epochs, rows = self.order.indices(positions)
        columns = positions.tolist(), epochs.tolist(), rows.tolist(), self._pieces(rows, positions)
        for position, epoch, row, pieces in zip(*columns, strict=True):
            sample, damages = self._row(pieces, position)
            number = row
            for attempt in range(ATTEMPTS):
                if sample["document_ids"][0] or len(sample["documents"]):
                    break
                number = derive_key(self.seed, position, attempt, _STAND_IN) % self.plan.rows
                sample, _ = self._row(self._pieces(np.array([number]), np.array([position]))[0], position)
            if not len(sample["documents"]):
                raise UserError(
                    f"{damages[0].shard}: no row without damage found; run `python -m data_tools verify`"
                )
            sample["__key__"], sample["__epoch__"] = f"row{number:09d}", epoch
            if damages:
                sample["__damage__"] = damages
            yield sample

    def stand_ins(self, position: int, error: DamagedSampleError) -> Iterator[Sample]:
        """None: a row is made here and lacks nothing, and what is damaged in it is padding."""
        return iter(())

    def read_ahead(self) -> ReadAhead | None:
        """As of a Stream."""
        if not self.dataset.remote:
            return None
        ahead = positions_ahead(self.row_bytes, self.plan.rows)
        return ReadAhead(self.needs, self.plan.rows, ahead, self.order.layout.turn)

    def needs(self, positions: Int64Array) -> Needs:
        """What is fetched for ``positions`` ≥ 0, shape (n,), ascending: (cache, segment, position that needs it)."""
        if (windows := self._windows) is not None:
            return windows.needs(positions)
        epochs, rows = self.order.indices(positions)
        pieces = self.plan.take(rows)
        counts, runs = np.diff(pieces.row_start), self._runs(positions, pieces)
        return self._documents.segments(pieces, np.repeat(epochs, counts), np.repeat(positions, counts), runs)

    def shards(self, positions: Int64Array) -> list[list[str]]:
        """The shards that hold the documents of each row at ``positions``."""
        _, rows = self.order.indices(positions)
        pieces = self.plan.take(rows)
        urls, shards = self.dataset.manifest.urls, self.dataset.locate(pieces.document)[0]
        return [
            [redacted(urls[shard]) for shard in np.unique(shards[first:last])]
            for first, last in pairwise(pieces.row_start.tolist())
        ]

    def _pieces(self, rows: Int64Array, positions: Int64Array) -> list[list[Piece]]:
        """The pieces of each row, which stands, or is to stand in, at one of ``positions``."""
        taken = self.plan.take(rows)
        shards, numbers = self.dataset.locate(taken.document)
        if (windows := self._windows) is not None:
            together = windows.find_together(positions, rows, taken)
        else:
            together = list(self.dataset.find_together(shards, numbers, self._runs(positions, taken)))
        columns = (column.tolist() for column in (shards, numbers, taken.start, taken.size))
        pieces = list(zip(*columns, together, strict=True))
        return [pieces[first:last] for first, last in pairwise(taken.row_start.tolist())]

    def _row(self, pieces: list[Piece], position: int) -> tuple[Sample, list[Damage]]:
        """One row; the slots of a document that cannot be read stay padding, so that no other one is lost."""
        tokens, document_ids, offsets = (np.zeros(self.length, dtype=np.int32) for _ in range(3))
        documents: list[tuple[str, int, int]] = []
        damages: list[Damage] = []
        at = 0
        for shard, number, start, size, run in pieces:
            try:
                key, piece = self._documents.read(shard, number, start, size, run)
            except DamagedSampleError as error:
                damages.append(Damage.at(position, error))
            else:
                documents.append((key, start, size))
                tokens[at : at + size] = piece
                document_ids[at : at + size] = len(documents)
                offsets[at : at + size] = self._counting[:size]
            at += size
        row_sample = {
            "tokens": tokens,
            "document_ids": document_ids,
            "position_ids": offsets,
            "documents": documents,
        }
        return row_sample, damages

    def state(self) -> dict[str, Any]:
        """As of a Stream, with what fixes the rows."""
        packing: dict[str, Any] = {"length": self.length, "method": self.method}
        if self.version == ORDER_VERSION:
            packing["window"] = self._window
        return {"fingerprint": self.fingerprint, "packing": packing, **self.order.state()}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go by the name that a saved state has for these very data, and in the order that its run began in."""
        version = state.get("order", self.version)
        if version not in (ORDER_VERSION, WINDOWS_VERSION):
            raise UserError(
                f"order={version!r}: the saved state has packed rows in an order that is not known here"
                f" ({ORDER_VERSION}, {WINDOWS_VERSION}); go on with the version of the program that saved it"
            )
        self.fingerprint = recognise(self.dataset, state)
        if version != self.version:
            self._use_version(version)

    def readable(self, positions: Int64Array) -> Int64Array:
        """All ``positions`` (n,): of a document that `verify` marked, a row has padding."""
        return positions


def stretch_documents(sample_bytes: float, window: int) -> int:
    """How many documents of a window are fetched at once: all of them, or a part of about `STRETCH_BYTES`."""
    return -(-window // max(1, round(window * sample_bytes / STRETCH_BYTES)))


def identify_lengths(dataset: Dataset) -> str:
    """A name for what the lengths of all documents depend on: the data set, and its sidecars by their checksums."""
    digest = hashlib.blake2b(dataset.fingerprint.encode(), digest_size=16)
    for column in (dataset.manifest.samples, dataset.manifest.bad, dataset.manifest.checksums):
        digest.update(np.ascontiguousarray(column, dtype="<i8").data)
    return digest.hexdigest()


def measure_lengths(dataset: Dataset, first: int, last: int) -> Int64Array:
    """Tokens of the documents ``first`` ≤ index < ``last``, by reading them; 0 for one that is damaged or has none."""
    log.warning("no lengths in the sidecar: reading %d documents once to measure them", last - first)
    raw = dataset.with_options(DecodeOptions())
    lengths = np.zeros(last - first, dtype=np.int64)
    shards, numbers = raw.locate(np.arange(first, last))
    for i, (shard, number) in enumerate(zip(shards.tolist(), numbers.tolist(), strict=True)):
        try:
            sample = raw.read(shard, number)
        except DamagedSampleError:
            continue
        if "tokens" not in sample:
            refuse_without_tokens(dataset, sample)
            continue
        lengths[i] = len(sample["tokens"])
    return lengths
