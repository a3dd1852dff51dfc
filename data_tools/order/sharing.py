"""Which node reads what of a step, so that a cluster fetches the data once: a pure function of the step's positions.

A lane belongs to one node, lane l to node l mod n, so that a window of consecutive positions has as many for each
node as for any other. Where n does not divide the lanes, each of the last ones keeps only its node's fair share of a
group, the first samples of it; what is left of them goes, stretch by stretch, to the nodes that have a lane less.
Then every node owns stretches of chunks and fetches them by ranges. As each must get exactly its part of a step, what
a node has too much of is handed to those that have too little, which fetch these samples one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data_tools.order.shuffle import FINAL, Order, Spots

Int64Array = NDArray[np.int64]

FREE = -1  # in place of a home: whoever takes the position, it costs the same

# The final block has no lanes. Where many nodes share it, and a chunk holds few samples, so that each of them is large
# enough (64 kB) to be fetched by itself, nobody owns it: chance would hand too much of it on.
MANY_NODES, FEW_SAMPLES = 48, 128


@dataclass(frozen=True)
class Runs:
    """What is fetched with the samples at some positions, all of shape (n,).

    ``home``: the node that owns each, or FREE; [first, stop): the run of sample indices, ``index`` among them, that the
    node fetches at once, all in one chunk of one shard. It is ``index`` alone where the node is not the home.
    """

    epoch: Int64Array
    index: Int64Array
    home: Int64Array
    first: Int64Array
    stop: Int64Array

    def take(self, chosen: NDArray[np.bool_]) -> Runs:
        """Those at some of the positions."""
        return Runs(*(getattr(self, field.name)[chosen] for field in fields(self)))


def find_runs(order: Order, positions: Int64Array, nodes: int = 1, node: int | None = None) -> Runs:
    """The runs at ``positions`` ≥ 0, shape (n,), of an order with lanes among ``nodes``, as ``node`` fetches them.

    Without ``node`` they are as the home of each fetches them.
    """
    epochs, within = np.divmod(positions, order.samples)
    index, home, first, stop = (np.empty_like(positions) for _ in range(4))
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        spots = order.spots(within[here], epoch)
        owner, low, high = _stretches(spots, order.layout.lanes, nodes)
        if nodes > MANY_NODES and order.layout.chunk <= FEW_SAMPLES:
            owner[spots.lane == FINAL] = FREE
        alone = owner != node if node is not None else owner == FREE
        low, high = np.where(alone, spots.spot, low), np.where(alone, spots.spot + 1, high)
        index[here], first[here], stop[here] = order.stretch_indices(spots, low, high, epoch)
        home[here] = owner
    return Runs(epochs, index, home, first, stop)


def _stretches(spots: Spots, lanes: int, nodes: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(owner, first, stop) of the stretch of its group that each spot lies in, shapes (n,)."""
    lane, spot, size = spots.lane, spots.spot, spots.size
    shared = lanes % nodes  # lanes of the last, unfinished turn of nodes
    home, low, high = lane % nodes, np.zeros_like(spot), size.copy()

    final = lane == FINAL  # cut into equal stretches
    home[final] = spot[final] * nodes // size[final]
    low[final], high[final] = (_ceil_div((home[final] + more) * size[final], nodes) for more in (0, 1))

    cut = (lane >= lanes - shared) & ~final
    share = _ceil_div(shared * size, nodes)  # of a group of a lane that is shared: what its node keeps
    high[cut] = share[cut]

    left = cut & (
        spot >= share
    )  # what is left of these lanes, end to end, goes to the nodes from `shared` on
    x, whole = (
        spot[left] * nodes,
        size[left],
    )  # in units of 1 / nodes of a sample, so that all are whole numbers
    before = (lane[left] - (lanes - shared)) * whole * (nodes - shared) - shared * whole
    taker = (before + x) // (shared * whole)
    home[left] = shared + taker
    begin, end = (taker + more for more in (0, 1))
    low[left] = np.maximum(_ceil_div(begin * shared * whole - before, nodes), share[left])
    high[left] = np.minimum(_ceil_div(end * shared * whole - before, nodes), whole)
    return home, low, high


def _ceil_div(number: Int64Array, by: int) -> Int64Array:
    return -(-number // by)


def share_equally(home: Int64Array, nodes: int) -> Int64Array:
    """The node that takes each position of a step, shape (B,), each equally many: at home where there is room.

    ``home``: the owner of each, or FREE; ``nodes`` divides B.
    """
    quota = len(home) // nodes
    takes = np.full_like(home, FREE)
    by_home = np.argsort(home, kind="stable")
    by_home = by_home[home[by_home] != FREE]
    counts = np.bincount(home[by_home], minlength=nodes)
    rank = np.arange(len(by_home)) - np.repeat(np.cumsum(counts) - counts, counts)
    at_home = by_home[rank < quota]
    takes[at_home] = home[at_home]
    takes[takes == FREE] = np.repeat(np.arange(nodes), quota - np.minimum(counts, quota))
    return takes


def share_step(
    positions: Int64Array, home: Int64Array | None, rank: int, world_size: int, node_size: int
) -> Int64Array:
    """The positions of a step, shape (B,), that ``rank`` takes, shape (B / world_size,), ascending.

    Without homes these are the ones ≡ rank (mod world size); with them a node's are dealt to its ranks in turn. The
    ranks of a node follow one another, ``node_size`` of them.
    """
    if home is None:
        return positions[(rank - int(positions[0])) % world_size :: world_size]
    takes = share_equally(home, world_size // node_size)
    return positions[takes == rank // node_size][rank % node_size :: node_size]
