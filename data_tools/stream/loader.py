"""Positions → batches on the host: the same for any number of workers, threads or processes."""

from __future__ import annotations

import copy
import threading
import time
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
from data_tools.storage import counters
from data_tools.storage.background import interrupt_by
from data_tools.storage.counters import Counts
from data_tools.storage.prefetch import ReadAhead
from data_tools.stream.collate import Collate, collate, collate_named
from data_tools.stream.incomplete import complete_example
from data_tools.stream.mixed import Mixture
from data_tools.stream.mixing_plan import MixingPlan
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
    micro_batches: list[dict[str, Any]]
    keys: list[list[str]]
    damages: list[Damage] = field(default_factory=list)


_MicroBatch = tuple[dict[str, Any], list[str], list[Damage]]
_Made = tuple[_MicroBatch, Counts | None]  # with what another process counted when it made it


def pin(made: _MicroBatch) -> _MicroBatch:
    """The micro-batch in page-locked memory, which a copy to the device does not wait for; a copy itself."""
    batch, keys, damages = made
    pinned = {name: v.pin_memory() if isinstance(v, Tensor) else v for name, v in batch.items()}
    return pinned, keys, damages


def make_micro_batch(
    stream: SampleStream, transform: Transform, seed: int, positions: Int64Array, collate: Collate = collate
) -> _MicroBatch:
    """Read, transform and collate the samples at ``positions``; others stand in for those that lack a field."""
    began = time.perf_counter()
    examples: list[dict[str, Any]] = []
    keys: list[str] = []
    damages: list[Damage] = []
    make = partial(make_example, transform=transform, seed=seed)
    for position, sample in zip(positions.tolist(), stream.samples(positions), strict=True):
        try:
            sample, example = complete_example(stream, position, sample, make)  # noqa: PLW2901 - the one that is taken
        except Exception as error:
            name_sample(error, sample["__key__"], stream.shards(positions[len(keys) : len(keys) + 1])[0])
            raise
        keys.append(sample["__key__"])
        damages += sample.get("__damage__", ())
        examples.append(example)
    made = collate_named(collate, examples, keys), keys, damages
    counters.counts.making += time.perf_counter() - began
    return made


def make_elsewhere(
    stream: SampleStream, transform: Transform, seed: int, collate: Collate, positions: Int64Array
) -> _Made:
    """A micro-batch made in a worker process, and what has come to that process's counts."""
    return make_micro_batch(stream, transform, seed, positions, collate), counters.take_new()


def make_example(sample: Sample, transform: Transform, seed: int) -> dict[str, Any]:
    """Transform a sample with the random numbers that are its own."""
    drawn_by: str = sample.get("__drawn_by__") or sample["__key__"]
    return transform(sample, sample_rng(seed, sample["__epoch__"], drawn_by))


def name_sample(error: Exception, key: str, shards: Sequence[str]) -> None:
    """Say in an error that a transform raised of which sample of which shards it is."""
    place = f"the sample {key!r} of {', '.join(shards)}"
    if isinstance(error, UserError):  # its text is all that is shown of it
        error.args = (f"{error} (in {place})",)
    error.add_note(f"while {place} was transformed")


def _open(pools: ExitStack, pool: ThreadPoolExecutor) -> ThreadPoolExecutor:
    pools.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


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
        self._stride = 1  # steps from one that is made here to the next one; the others are made elsewhere
        self._stale = False  # what was prepared ahead is no longer what is wanted

    def __getstate__(self) -> dict[str, Any]:
        """All but what runs here: workers, and what fetches ahead."""
        return {**vars(self), "_pools": ExitStack(), "_reader": None}

    def share_of_worker(self, worker: int, workers: int) -> Loader:
        """A loader of the steps ``worker``, ``worker`` + ``workers``, … from here on, made in its caller's thread.

        For processes that somebody else starts: batches are not pinned, for that is up to the process that takes them.
        """
        share = copy.copy(self)
        share.workers, share.pin_memory = 0, False
        share.position = self._after(self.position, worker)
        share._stride = workers
        return share

    def _after(self, position: int, steps: int) -> int:
        """Where a step starts that comes ``steps`` after the one at ``position``."""
        for _ in range(steps):
            position += self.batch_sizes.at(position)
        return position

    def _mine(self, position: int) -> Int64Array:
        """This rank's positions of the step at ``position``, shape (global batch size / world_size,)."""
        step = np.arange(position, self._after(position, 1), dtype=np.int64)
        nodes = self.world_size // self.node_size
        homes = self.stream.homes(step, nodes) if nodes > 1 else None
        return share_step(step, homes, self.rank, self.world_size, self.node_size)

    def _next(self, position: int) -> int:
        """Where the step starts that is made here after the one at ``position``."""
        return self._after(position, self._stride)

    def micro_positions(self, position: int) -> list[Int64Array]:
        """This rank's positions of the step at ``position``, micro-batch by micro-batch."""
        mine = self._mine(position)
        return [mine[i : i + self.micro_batch_size] for i in range(0, len(mine), self.micro_batch_size)]

    def __iter__(self) -> Iterator[Step]:
        """Steps from the current position on. ``position`` moves as each step is taken, not as it is prepared."""
        while True:
            self._stale = False
            yield from self._steps_until_stale()

    def _steps_until_stale(self) -> Iterator[Step]:
        """Steps until the position or the order is changed from outside; then what was prepared is dropped."""
        reader = self._reader = self.stream.read_ahead()
        pools = self._pools = ExitStack()
        submit = self._start_pool(pools) if self.workers else None
        pending: deque[list[Future[_Made]]] = deque()
        ahead = self.position
        try:
            while not self._stale:
                if reader is not None:
                    reader.advance(self.position, self._next, self._mine)
                if submit is None:
                    yield self._step([self._make(p) for p in self.micro_positions(self.position)])
                    continue
                while len(pending) < 2 or sum(map(len, pending)) < AHEAD * self.workers:
                    pending.append([submit(p) for p in self.micro_positions(ahead)])
                    ahead = self._next(ahead)
                yield self._step([future.result() for future in pending.popleft()])
        finally:
            pools.close()
            if reader is not None:
                reader.close()

    def _start_pool(self, pools: ExitStack) -> Callable[[Int64Array], Future[_Made]]:
        """Start the workers, who end with ``pools``; what is returned has a micro-batch made by one of them."""
        if self.worker_kind == "thread":
            stop = threading.Event()
            threads = _open(pools, ThreadPoolExecutor(self.workers, "data", interrupt_by, (stop,)))
            pools.callback(stop.set)  # the first thing when they are closed: nobody waits for an outage then
            return lambda positions: threads.submit(self._make, positions)
        pinner = _open(pools, ThreadPoolExecutor(1, "pin")) if self.pin_memory else None
        work = partial(make_elsewhere, self.stream, self.transform, self.seed, self.collate)
        processes = ProcessPool(self.workers, work)
        pools.callback(processes.end)  # before the thread that waits for what they make
        if pinner is None:
            return processes.do

        def pin_result(future: Future[_Made]) -> _Made:
            made, counts = future.result()
            return pin(made), counts

        return lambda positions: pinner.submit(pin_result, processes.do(positions))

    def _make(self, positions: Int64Array) -> _Made:
        made = make_micro_batch(self.stream, self.transform, self.seed, positions, self.collate)
        return pin(made) if self.pin_memory else made, None

    def _step(self, made: list[_Made]) -> Step:
        for _, counts in made:
            if counts is not None:
                counters.add(counts)
        parts = [part for part, _ in made]
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

    def plan_weights(self, plan: MixingPlan) -> None:
        """The same for weights that a plan gives; see ``Mixture.plan_weights``."""
        if not isinstance(self.stream, Mixture):
            raise UserError("weights: this stream is no mixture; give the loader a Mixture")
        self.stream.plan_weights(plan, self.position)
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
        """Go on where a state was taken; a running iteration does so with its next step.

        Raises UserError when the stream is not the one that the state was taken of; nothing has changed then.
        """
        trial = copy.copy(self.stream)
        trial.adopt(state)
        here = trial.state()
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
        vars(self.stream).update(
            vars(trial)
        )  # adopting once more would warn, and may read every sidecar, twice
        self.position = int(state["position"])
        self._stale = True
