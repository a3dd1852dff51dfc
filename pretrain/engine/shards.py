"""Tensors that are spread over ranks, seen from one rank."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shard of each (all of it where nothing is sharded), sharing its memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def shard_group(tensor: Tensor) -> ProcessGroup | None:
    """The ranks that hold a tensor's shards, in order; None where every rank has all of it."""
    if not isinstance(tensor, DTensor):
        return None
    dimensions = [i for i, placement in enumerate(tensor.placements) if isinstance(placement, Shard)]
    return tensor.device_mesh.get_group(dimensions[0]) if dimensions else None


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks, gathered on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
