"""The stream for other people's training loops: a torch IterableDataset of batches that can be resumed.

Three ways to take the batches, which are the same for any number of workers:

- in this process: ``for batch in StreamDataset(loader)``, with the loader's own workers,
- ``StreamDataLoader(dataset, num_workers=…)``: torch's DataLoader, which also counts what was taken,
- torch's DataLoader or torchdata's StatefulDataLoader, with ``batch_size=None``.

All are endless, and the first two go on where they are when they are iterated over again. The DataLoaders of others do
not tell this process how many batches were taken from their workers: to iterate over one again without saying where to
go on is an error, for the alternative were to repeat or to skip batches in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_tools.errors import UserError
from data_tools.stream.loader import Loader

_SIZE, _TOLD, _BEGUN = range(3)  # what DataLoader's workers share with the process that started them
STATE_BYTES = (
    1 << 16
)  # of the state that workers start at; it is a few hundred, and more with a long mixing history

UNKNOWN = (
    "DataLoader's workers have taken batches, and how many of them came out is not known here: use a StreamDataLoader, "
    "which counts them; or say where to go on before you iterate again: with "
    "dataset.load_state_dict(dataset.state_dict(steps)), or loader.load_state_dict(loader.state_dict()) of torchdata"
)


class StreamDataset(IterableDataset[dict[str, Any]]):
    """Endless batches of one rank, each a whole step of ``loader``.

    Worker w of n prepares steps w, w + n, …, which is the order in which a DataLoader hands them out. Iterating always
    begins at this object's position: where the last batch was taken in this process, or what ``load_state_dict`` said,
    also when workers are persistent.
    """

    def __init__(self, loader: Loader) -> None:
        """``loader``: where the batches come from; raises ValueError unless each step of it is one micro-batch."""
        whole = loader.micro_batch_size * loader.world_size == loader.global_batch_size
        if not whole or loader.batch_sizes.warmup:
            raise ValueError(
                "a StreamDataset gives whole batches of one size: leave the loader's micro_batch_size and "
                "batch_size_warmup at their defaults"
            )
        self._loader = loader
        self._start = loader.position  # where this process last said that it starts
        self._state = torch.zeros(STATE_BYTES, dtype=torch.uint8).share_memory_()  # JSON: where workers start
        # (bytes of that, times it was written, the time for which workers have begun)
        self._shared = torch.tensor([0, 0, -1]).share_memory_()
        self._times_told = 0  # as this process counts, and a worker when it was started
        self._iterated = False  # this worker has begun once, and was not started for this iteration
        self._restored = False  # this worker's copy was: it starts where that says
        self._counted = False  # somebody in this process counts what comes from workers
        self.start_here()

    def __iter__(self) -> StreamIterator:
        worker = get_worker_info()
        if worker is None:
            self._refuse_unknown()
            return StreamIterator(self._loader)
        # A worker that was started for this iteration begins where its copy is: what is shared may have changed since.
        if self._iterated:
            self._times_told = int(self._shared[_TOLD])
        unknown = worker.id == 0 and not self._restored and self._is_unknown()
        if worker.id == 0:
            self._shared[_BEGUN] = max(self._times_told, int(self._shared[_BEGUN]))
        if self._iterated and not self._restored:
            self._loader.load_state_dict(json.loads(bytes(self._state[: self._shared[_SIZE]].tolist())))
        self._iterated, self._restored = True, False
        return StreamIterator(self._loader.share_of_worker(worker.id, worker.num_workers), unknown)

    @property
    def position(self) -> int:
        """Of the next sample, counted from the start of the run over all ranks."""
        return self._loader.position

    @property
    def times_told(self) -> int:
        """How often this process has said where to start."""
        return self._times_told

    def count_step(self) -> None:
        """Say that a batch which a worker prepared was taken."""
        self._loader.position += self._loader.global_batch_size

    def count_here(self) -> None:
        """Say that ``count_step`` is going to be called for every batch that workers prepare."""
        self._counted = True

    def start_here(self) -> None:
        """Let workers that begin from now on start at the present position, with the present weights of a mixture."""
        self._start = self._loader.position
        state = json.dumps(self._loader.state_dict()).encode()
        if len(state) > STATE_BYTES:
            raise UserError(
                f"the stream's state has {len(state):,} bytes, and workers take {STATE_BYTES:,}: change the weights of"
                " the mixture less often"
            )
        self._state[: len(state)] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
        self._shared[_SIZE] = len(state)
        self._times_told += 1
        self._shared[_TOLD] = self._times_told

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change a mixture's weights from the next batch on; all ranks must do so at the same step."""
        self._refuse_unknown()
        self._loader.set_weights(weights)
        self.start_here()

    def _is_unknown(self) -> bool:
        """Whether workers have begun since the position was last known."""
        return bool(self._shared[_BEGUN] == self._times_told) and not self._counted

    def _refuse_unknown(self) -> None:
        if self._is_unknown():
            raise UserError(UNKNOWN)

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """The state now, or after ``steps`` steps from where this object, or its last loaded state, started.

        Raises UserError where it is not known how many steps workers have taken.
        """
        state = self._loader.state_dict()
        if steps is not None:
            state["position"] = self._start + steps * self._loader.global_batch_size
        elif get_worker_info() is None:
            self._refuse_unknown()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken; raises UserError when the stream is another one than then."""
        self._loader.load_state_dict(state)
        if get_worker_info() is None:
            self.start_here()
        else:
            self._restored = True


class StreamIterator(Iterator[dict[str, Any]]):
    """Batches of a loader, and the state that torchdata's StatefulDataLoader asks each worker for."""

    def __init__(self, loader: Loader, unknown: bool = False) -> None:
        """``unknown``: where to start is not known, which the first batch says; DataLoaders lose what iter() raises."""
        self._loader, self._steps, self._unknown = loader, iter(loader), unknown

    def __next__(self) -> dict[str, Any]:
        if self._unknown:
            raise UserError(UNKNOWN)
        batch: dict[str, Any] = next(self._steps).micro_batches[0]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position of the next step that this iterator makes, and what the order depends on."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where such an iterator, of the same one of as many workers, was."""
        self._loader.load_state_dict(state)
        self._unknown = False


class StreamDataLoader(DataLoader[dict[str, Any]]):
    """torch's DataLoader over a StreamDataset that knows what was taken from it.

    Iterating again goes on with the next batch, and ``state_dict`` and ``load_state_dict`` are those of the dataset:
    they may be of another number of workers, and of ranks. A state that is loaded in the middle of an iteration, or
    weights that are set, hold from its next batch on.
    """

    def __init__(self, dataset: StreamDataset, **options: Any) -> None:
        """``options``: those of DataLoader, ``num_workers``, ``persistent_workers``, ``pin_memory`` and so on.

        Raises ValueError for ``in_order=False``: which batches were taken could then not be told by their number.
        """
        if not options.get("in_order", True):
            raise ValueError(
                "in_order=False: batches are counted, so they must come in their order; leave it out"
            )
        super().__init__(dataset, batch_size=None, **options)
        self._stream = dataset
        dataset.count_here()

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Batches from the dataset's position on."""
        while True:
            self._stream.start_here()
            told = self._stream.times_told
            for batch in super().__iter__():
                if self.num_workers:
                    self._stream.count_step()
                yield batch
                if self._stream.times_told != told:
                    break

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change a mixture's weights from the next batch on; all ranks must do so at the same step."""
        self._stream.set_weights(weights)

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches that were taken so far."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken; raises UserError when the stream is another one than then."""
        self._stream.load_state_dict(state)
