"""The stream for other people's training loops: a torch IterableDataset of batches that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from data_tools.stream.loader import Loader


class StreamDataset(IterableDataset[dict[str, Tensor]]):
    """Endless batches of one rank; use ``DataLoader(dataset, batch_size=None, num_workers=…)`` or iterate over it.

    Worker w of n prepares steps w, w + n, …, which is the order in which DataLoader hands them out, so the batches
    are the same for any number of workers. With workers the copies in them do the counting, not this object: say
    how many steps were taken, ``state_dict(steps)``, or use torchdata's StatefulDataLoader, which asks them.
    """

    def __init__(self, loader: Loader) -> None:
        """``loader``: where the batches come from; each must be one micro-batch."""
        whole = loader.micro_batch_size * loader.world_size == loader.global_batch_size
        if not whole or loader.batch_sizes.warmup:
            raise ValueError(
                "a StreamDataset gives whole batches of one size: leave the loader's micro_batch_size and "
                "batch_size_warmup at their defaults"
            )
        self._loader = loader
        self._start = loader.position

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        if worker is None:
            for step in self._loader:
                yield step.micro_batches[0]
            return
        self._loader.workers = 0
        self._loader.position += worker.id * self._loader.global_batch_size
        while True:
            yield next(iter(self._loader)).micro_batches[0]
            self._loader.position += (worker.num_workers - 1) * self._loader.global_batch_size

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """The state now, or after ``steps`` steps from where this object started."""
        state = self._loader.state_dict()
        if steps is not None:
            state["position"] = self._start + steps * self._loader.global_batch_size
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)
        self._start = self._loader.position
