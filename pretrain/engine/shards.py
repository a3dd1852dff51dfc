"""Tensors that are spread over ranks, seen from one rank."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
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


@torch.no_grad()
def copy_shard(tensor: Tensor, whole: Tensor) -> None:
    """Fill this rank's shard of a tensor (all of it where nothing is sharded) from the whole one, which it has."""
    if isinstance(tensor, DTensor):
        for dimension, placement in enumerate(tensor.placements):
            if isinstance(placement, Shard):
                whole = chunk_of(whole, tensor.device_mesh, dimension, placement.dim)
        tensor = tensor.to_local()
    tensor.copy_(whole)


def chunk_of(whole: Tensor, mesh: DeviceMesh, mesh_dimension: int, dim: int) -> Tensor:
    """This rank's piece of a tensor that a dimension of the mesh shares out; the last ranks may have none."""
    pieces = whole.chunk(mesh.size(mesh_dimension), dim)
    rank = mesh.get_local_rank(mesh_dimension)
    return pieces[rank] if rank < len(pieces) else whole.narrow(dim, 0, 0)
