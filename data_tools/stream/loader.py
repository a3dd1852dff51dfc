"""Positions → batches on the host: the same for any number of workers, threads or processes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_tools.dataset.damage import Damage, DamagedSampleError, Ledger
from data_tools.decode.sample import Sample
from data_tools.errors import UserError
from data_tools.order.batch_sizes import BatchSizes
from data_tools.order.sharing import share_step
from data_tools.storage.background import interrupt_by
from data_tools.storage.prefetch import ReadAhead
from data_tools.stream.collate import Collate, collate
from data_tools.stream.incomplete import complete_example
from data_tools.stream.mixed import Mixture
from data_tools.stream.process_workers import ProcessPool
from data_tools.stream.randomness import sample_rng

Transform = Callable[[Sample, np.random.Generator], dict[str, Any]]

Int64Array = NDArray[np.int64]

AHEAD = 2  # micro-batches in preparation for each worker


class SampleStream(Protocol):
    """What a loader needs of Stream, PackedStream and Mixture."""

    samples_per_epoch: int

    def samples(self, positions: Int64Array) -> Iterator[Sample]: ...
    def stand_ins(self, position: int, error: DamagedSampleError) -> Iterator[Sample]: ...
    def read_ahead(self) -> ReadAhead | None: ...
    def shards(self, positions: Int64Array) -> list[list[str]]: ...
    def share_among(self, nodes: int, node: int) -> None: ...
    def homes(self, positions: Int64Array, nodes: int) -> Int64Array | None: ...
    def state(self) -> dict[str, Any]: ...
    def adopt(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Step:
    """One global batch's share of this rank: positions [position, position + global batch size)."""

    position: int
    epoch: int
    micro_batches: list[dict[str, Tensor]]
    keys: list[list[str]]
    damages: list[Damage] = field(default_factory=list)


_MicroBatch = tuple[dict[str, Tensor], list[str], list[Damage]]


def pin(made: _MicroBatch) -> _MicroBatch:
    """The micro-batch in page-locked memory, which a copy to the device does not wait for; a copy itself."""
    batch, keys, damages = made
    return {name: tensor.pin_memory() for name, tensor in batch.items()}, keys, damages


def make_micro_batch(
    stream: SampleStream, transform: Transform, seed: int, positions: Int64Array, collate: Collate = collate
) -> _MicroBatch:
    """Read, transform and collate the samples at ``positions``; others stand in for those that lack a field."""
    examples, keys, damages = [], [], []
    make = partial(make_example, transform=transform, seed=seed)
    for position, sample in zip(positions.tolist(), stream.samples(positions), strict=True):
        sample, example = complete_example(stream, position, sample, make)  # noqa: PLW2901 - the one that is taken
        keys.append(sample["__key__"])
        damages += sample.get("__damage__", ())
        examples.append(example)
    return collate(examples), keys, damages


def make_example(sample: Sample, transform: Transform, seed: int) -> dict[str, Any]:
    """Transform a sample; an error that the transform raises gets a note that names the sample."""
    key = sample["__key__"]
    try:
        return transform(sample, sample_rng(seed, sample["__epoch__"], key))
    except Exception as error:
        error.add_note(f"while the sample {key!r} was transformed")
        raise


class Loader:
    """Endless steps of a stream for one rank of ``world_size``.

    Step t of a run holds positions [tB, (t + 1)B) for the global batch size B; rank r takes those ≡ r (mod world
    size), in micro-batches. Where shards have to be fetched by many nodes, it takes as many others of the same step,
    so that its node fetches what no other one does: ``node_size`` successive ranks are one node, the same on all ranks.
    ``workers`` prepare them ahead, threads or processes; 0 prepares them in the caller's
    thread when they are taken. ``pin_memory`` page-locks them, in a worker thread where there are workers.
    ``batch_size_warmup`` holds stages (global batch size, steps) that come before B.
    ``collate`` makes a batch of what ``transform`` returned.
    """

    def __init__(
        self, stream: SampleStream, transform: Transform, seed: int = 0, global_batch_size: int = 256,
        micro_batch_size: int | None = None, rank: int = 0, world_size: int = 1, workers: int = 0,
        worker_kind: str = "thread", start: int = 0, pin_memory: bool = False, max_damage_rate: float = 0.01,
        batch_size_warmup: Sequence[tuple[int, int]] = (), collate: Collate = collate, node_size: int = 1,
    ) -> None:  # fmt: skip
        self.batch_sizes = BatchSizes(global_batch_size, tuple(batch_size_warmup))
        self.micro_batch_size = micro_batch_size or global_batch_size // world_size
        for size in self.batch_sizes.all:
            if size < 1 or size % world_size:
                raise UserError(
                    f"global_batch_size={size}: {world_size} ranks do not divide it; use a multiple of {world_size}"
                )
            share = size // world_size
            if self.micro_batch_size < 1 or share % min(share, self.micro_batch_size):
                raise UserError(
                    f"micro_batch_size={self.micro_batch_size}: does not divide the {share} samples of a rank"
                    f" (global_batch_size={size} over {world_size} ranks); use a divisor of {share}"
                )
        if not 0 <= rank < world_size:
            raise UserError(f"rank={rank}: must lie in [0, {world_size})")
        if node_size < 1 or world_size % node_size:
            raise UserError(f"node_size={node_size}: {world_size} ranks are not so many nodes of {node_size}")
        if worker_kind not in ("thread", "process"):
            raise UserError(f"worker_kind={worker_kind!r}: must be 'thread' or 'process'")
        self.stream, self.transform, self.seed, self.collate = stream, transform, seed, collate
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.workers, self.worker_kind, self.pin_memory = workers, worker_kind, pin_memory
        self.node_size = node_size
        stream.share_among(world_size // node_size, rank // node_size)
        self.position = start
        self.ledger = Ledger(max_damage_rate)
        self._pools = ExitStack()
        self._reader: ReadAhead | None = None
        self._stale = False  # what was prepared ahead is no longer what is wanted

    def _mine(self, position: int) -> Int64Array:
        """This rank's positions of the step at ``position``, shape (global batch size / world_size,)."""
        step = np.arange(position, self._next(position), dtype=np.int64)
        nodes = self.world_size // self.node_size
        homes = self.stream.homes(step, nodes) if nodes > 1 else None
        return share_step(step, homes, self.rank, self.world_size, self.node_size)

    def _next(self, position: int) -> int:
        """Where the step after the one at ``position`` starts."""
        return position + self.batch_sizes.at(position)

    def micro_positions(self, position: int) -> list[Int64Array]:
        """This rank's positions of the step at ``position``, micro-batch by micro-batch."""
        mine = self._mine(position)
        return [mine[i : i + self.micro_batch_size] for i in range(0, len(mine), self.micro_batch_size)]

    def __iter__(self) -> Iterator[Step]:
        """Steps from the current position on. ``position`` moves as each step is taken, not as it is prepared."""
        reader = self._reader = self.stream.read_ahead()

        def advance() -> None:
            if reader is not None:
                reader.advance(self.position, self._next, self._mine)

        pending: deque[list[Future[_MicroBatch]]] = deque()
        ahead = self.position
        try:
            while self.workers == 0:
                advance()
                parts = self.micro_positions(self.position)
                yield self._step([self._make(positions) for positions in parts])
            submit = self._start_pool()
            while True:
                advance()
                if self._stale:
                    submit, ahead, self._stale = self._start_pool(), self.position, False
                    pending.clear()
                while len(pending) < 2 or sum(map(len, pending)) < AHEAD * self.workers:
                    pending.append([submit(p) for p in self.micro_positions(ahead)])
                    ahead = self._next(ahead)
                yield self._step([future.result() for future in pending.popleft()])
        finally:
            self.close()

    def _start_pool(self) -> Callable[[Int64Array], Future[_MicroBatch]]:
        """Start the workers; what is returned has a micro-batch made by one of them."""
        self._pools.close()
        if self.worker_kind == "thread":
            stop = threading.Event()
            threads = self._open_threads(ThreadPoolExecutor(self.workers, "data", interrupt_by, (stop,)))
            self._pools.callback(
                stop.set
            )  # the first thing when they are closed: nobody waits for an outage then
            return lambda positions: threads.submit(self._make, positions)
        pinner = self._open_threads(ThreadPoolExecutor(1, "pin")) if self.pin_memory else None
        work = partial(make_micro_batch, self.stream, self.transform, self.seed, collate=self.collate)
        processes = ProcessPool(self.workers, work)
        self._pools.callback(processes.end)  # before the thread that waits for what they make
        if pinner is None:
            return processes.do

        def submit(positions: Int64Array) -> Future[_MicroBatch]:
            made: Future[_MicroBatch] = processes.do(positions)
            return pinner.submit(lambda: pin(made.result()))

        return submit

    def _open_threads(self, pool: ThreadPoolExecutor) -> ThreadPoolExecutor:
        self._pools.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    def _make(self, positions: Int64Array) -> _MicroBatch:
        made = make_micro_batch(self.stream, self.transform, self.seed, positions, self.collate)
        return pin(made) if self.pin_memory else made

    def _step(self, parts: list[_MicroBatch]) -> Step:
        damages = [damage for _, _, found in parts for damage in found]
        self.ledger.add(damages, sum(len(keys) for _, keys, _ in parts))
        position = self.position
        self.position = self._next(position)
        epoch = position // self.stream.samples_per_epoch
        return Step(
            position, epoch, [batch for batch, _, _ in parts], [keys for _, keys, _ in parts], damages
        )

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change a mixture's weights from the next step on; all ranks must do so at the same step."""
        if not isinstance(self.stream, Mixture):
            raise UserError("weights: this stream is no mixture; give the loader a Mixture")
        self.stream.set_weights(weights, self.position)
        self._stale = True

    def close(self) -> None:
        """Stop the workers and what is fetched ahead; what they prepared is dropped, what they wait for given up."""
        self._pools.close()
        if self._reader is not None:
            self._reader.close()

    def state_dict(self) -> dict[str, Any]:
        """The position after the steps taken so far, and what the stream's order depends on."""
        return {"position": self.position, **self.stream.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken; raises UserError when the stream is not the one that it was taken of."""
        self.stream.adopt(state)
        here = self.stream.state()
        differing = [
            f"{name} was {state.get(name)!r}, is {value!r}"
            for name, value in here.items()
            if state.get(name) != value
        ]
        if differing:
            raise UserError(
                f"the data stream is not the one of the saved state: {'; '.join(differing)}; use the same data and"
                " settings, or start a new run"
            )
        self.position = int(state["position"])
