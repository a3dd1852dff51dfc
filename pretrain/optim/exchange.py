"""Whole matrices out of shards and back: each rank works on its share of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def on_whole_matrices(
    work: Callable[[Tensor], Tensor],
    shards: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    group: ProcessGroup,
) -> list[Tensor]:
    """`work` done on every whole matrix, on one rank each: one all-to-all gathers them, another hands rows back.

    Args:
        work: matrix (A, B) → matrix (A, B).
        shards: this rank's rows of every matrix, maybe none.
        shapes: of the whole matrices, cut along the first dimension as `torch.chunk` does.
    Returns:
        This rank's rows of every result.
    """
    ranks, rank = range(group.size()), group.rank()
    owners = share_out([a * b * min(a, b) for a, b in shapes], group.size())  # matrix products take as long
    owned = [[i for i, owner in enumerate(owners) if owner == r] for r in ranks]
    mine, order = owned[rank], [i for share in owned for i in share]

    def numel(i: int, r: int) -> int:
        return rows_of(shapes[i][0], group.size(), r) * shapes[i][1]

    to_owners = [sum(numel(i, rank) for i in share) for share in owned]
    from_ranks = [sum(numel(i, r) for i in mine) for r in ranks]

    received = all_to_all(flat([shards[i] for i in order], shards[0]), to_owners, from_ranks, group)
    pieces = received.split([numel(i, r) for r in ranks for i in mine])  # rank by rank
    done = [work(torch.cat(pieces[k :: len(mine)]).view(shapes[i])) for k, i in enumerate(mine)]

    cut = [result.flatten().split([numel(i, r) for r in ranks]) for i, result in zip(mine, done, strict=True)]
    returned = all_to_all(
        flat([rows[r] for r in ranks for rows in cut], shards[0]), from_ranks, to_owners, group
    )
    results = dict(zip(order, returned.split([numel(i, rank) for i in order]), strict=True))
    return [results[i].view_as(shard) for i, shard in enumerate(shards)]


def share_out(costs: Sequence[int], ranks: int) -> list[int]:
    """Who does what, about equally much each: the costliest first, to whoever has least."""
    loads, owners = [0] * ranks, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def rows_of(height: int, ranks: int, rank: int) -> int:
    """How many rows of a matrix a rank has."""
    chunk = -(-height // ranks)
    return min(max(height - rank * chunk, 0), chunk)


def flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """All in one row; empty, of the type of `like`, where there are none."""
    return torch.cat([like.new_empty(0), *(tensor.flatten() for tensor in tensors)])


def all_to_all(sent: Tensor, sizes: list[int], received_sizes: list[int], group: ProcessGroup) -> Tensor:
    """Each rank's part of `sent` to that rank; what comes from each, in their order."""
    received = sent.new_empty(sum(received_sizes))
    dist.all_to_all_single(received, sent, received_sizes, sizes, group=group)
    return received
