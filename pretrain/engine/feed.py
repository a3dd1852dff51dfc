"""Micro-batches on their way to the device, beside what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pretrain.objectives.base import Batch


class Feed:
    """Copies a step's micro-batches to a device, on a GPU on a stream of its own and one ahead of the one in use.

    The host runs ahead of a GPU, so the first copy of a step is under way while the step before it is computed. It
    waits for nothing where the batch lies in page-locked memory.
    """

    def __init__(self, device: torch.device, arrive: Callable[[Batch], Batch]) -> None:
        """`arrive`: what is made of a batch on the device (`Objective.arrive`)."""
        self.device, self.arrive = device, arrive
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Each micro-batch on the device, in order; at most two of them at a time."""
        ahead: tuple[Batch, Any] | None = None
        for batch in batches:
            following = self.start(batch)
            if ahead is not None:
                yield self.finish(*ahead)
            ahead = following
        if ahead is not None:
            yield self.finish(*ahead)

    def start(self, batch: Batch) -> tuple[Batch, Any]:
        """The batch on the device, its copy only begun, and the event that tells the copy's end."""
        with torch.cuda.stream(self.stream):  # no stream, no effect
            moved = {
                name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
            return moved, self.stream.record_event() if self.stream else None

    def finish(self, batch: Batch, copied: Any) -> Batch:
        """Let the device's own stream, not the host, wait for a copy that was begun."""
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(computing)  # or its memory could be given away while it is read
        return self.arrive(batch)
