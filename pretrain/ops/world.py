"""A process among its peers: the collectives that engines and objectives use. A world of one needs no process group."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class World:
    """This process among its peers, as `torchrun` tells it through the environment.

    Its collectives are called on all ranks together, with tensors of the same shape on each. `sum` and `gather` carry
    gradients: those of *all* ranks' losses, because engines sum gradients over ranks; so a loss over gathered samples
    has the gradient that one process would have.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        return cls(*(int(os.environ.get(key, default)) for key, default in
                     (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))  # fmt: skip

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank; the input is left as it is."""
        return values if self.size == 1 else SumOverRanks.apply(values)

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's (B, …) below one another, by rank: (size · B, …), on every rank."""
        return values if self.size == 1 else GatherFromRanks.apply(values, self)

    def broadcast(self, values: Tensor, source: int = 0) -> Tensor:
        """The values of rank `source`, on every rank, without gradient; the input is left as it is."""
        values = values.detach()
        if self.size == 1:
            return values
        received = values.clone(memory_format=torch.contiguous_format)
        dist.broadcast(received, src=source)
        return received

    def find_node_size(self) -> int:
        """How many ranks a node has, on every rank as rank 0 is told; 1 where the ranks do not make such nodes."""
        told = int(self.broadcast(torch.tensor(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
        return whole_nodes(self.size, told)

    def start_sum(self, values: Tensor) -> PendingSum:
        """Begin to sum a tensor of the host over ranks, in place; nothing is waited for."""
        if self.size == 1:
            return PendingSum(values, None)
        return PendingSum(values, dist.all_reduce(values, async_op=True))


def whole_nodes(ranks: int, node_size: int) -> int:
    """``node_size`` where so many ranks at a time make up all ``ranks``; else 1: each rank stands for itself."""
    return node_size if node_size > 0 and ranks % node_size == 0 else 1


class PendingSum:
    """A sum over ranks that is under way."""

    def __init__(self, values: Tensor, work: Any) -> None:
        self.values = values
        self.started = self.ended = time.perf_counter()
        self.future = None if work is None else work.get_future().then(self.note_end)

    def note_end(self, _future: Any) -> None:
        self.ended = time.perf_counter()

    def wait(self) -> Tensor:
        """The sum, as soon as every rank has given its part."""
        if self.future is not None:
            self.future.wait()
        return self.values

    @property
    def seconds(self) -> float:
        """How long this rank was ahead of the slowest, once the sum is there, whether or not it waited meanwhile."""
        return self.ended - self.started


class SumOverRanks(torch.autograd.Function):
    """All-reduce; each rank's input has had its part in the losses of all ranks."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class GatherFromRanks(torch.autograd.Function):
    """All-gather; backward, the gradients that all ranks have for this rank's input are summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World) -> Tensor:
        ctx.world = world
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(ctx.world.size)[ctx.world.rank], None
