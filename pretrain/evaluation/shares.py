"""Samples of an evaluation, shared among ranks: each one exactly once, by as many forward passes on every rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def share_batches(
    count: int, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """This rank's batches of [0, count): the indices ≡ rank (mod world size), and whether the batch counts.

    Every rank gets as many batches as rank 0, because sharded weights are gathered in each forward pass by all ranks
    together; where a rank has no samples left, its batch is the first sample, which is to be computed and dropped.
    """
    longest = -(-count // world_size)
    mine = np.arange(rank, count, world_size, dtype=np.int64)
    for start in range(0, longest, batch_size):
        batch = mine[start : start + batch_size]
        yield (batch, True) if len(batch) else (np.zeros(1, dtype=np.int64), False)
