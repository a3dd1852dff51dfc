"""Best fit over windows of documents, many windows at a time: one NumPy operation serves a step of all of them. No I/O.

Each row begins with the largest piece left, goes on with pieces that leave room for a whole number of average ones,
and ends with the two that fill it best: documents of similar sizes, of which plain best-fit leaves remainders too
small for any, fill rows this way. Of pieces of one size, the last one comes first. Where nothing fits what is left of
a row, more than ``tolerance`` slots, the largest piece left is cut to fill it.

Windows share nothing, so that what is a loop over pieces in each becomes a loop of steps over all: in every step
each window places a piece, or two, or closes its row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]

TRIES = 4  # sums looked up in the sets of sizes before all sizes are paired
_ALL, _ONE = np.uint64(2**64 - 1), np.uint64(1)


@dataclass(frozen=True)
class PackedWindows:
    """Pieces in the order of their rows, one window after another.

    Piece i is ``size[i]`` tokens from ``offset[i]`` on of what exceeds whole rows in document ``document[i]`` of its
    window; row j of all begins with piece ``row_first[j]`` of its window.
    """

    pieces: Int64Array  # (windows,), how many each has
    rows: Int64Array  # (windows,)
    document: NDArray[np.int32]  # (pieces,)
    offset: NDArray[np.int32]
    size: NDArray[np.int32]
    row_first: NDArray[np.int32]  # (rows,)


def pack_windows(sizes: NDArray[np.int32], length: int, tolerance: int) -> PackedWindows:
    """Pack the pieces of each window, (windows, documents) of fewer than ``length`` tokens, 0 for none."""
    packer = _Packer(sizes, length)
    room = np.full(len(sizes), length, dtype=np.int64)
    active = _where(packer.left > 0)
    packer.begin_rows(active)
    while active.size:
        chosen, partner = packer.choose(active, room[active])
        for pick in (chosen, partner):
            placed = _where(pick > 0)
            if placed.size:
                w, n = active[placed], pick[placed]
                packer.place(w, packer.pop(w, n), n)
                packer.left[w] -= 1
                room[w] -= n
        full = (room[active] == 0) | (packer.left[active] == 0)
        stuck = _where((chosen < 0) & ~full)
        if stuck.size:
            full[stuck] = True
            wide = active[stuck[room[active[stuck]] > tolerance]]
            if wide.size:
                packer.cut(wide, room[wide])
        ended = active[full]
        if ended.size:
            room[ended] = length
            packer.begin_rows(ended[packer.left[ended] > 0])
            active = active[packer.left[active] > 0]
    return packer.result()


class _Packer:
    """The pieces that are left in each window: stacks by size, and the set of sizes that are there, as bits."""

    def __init__(self, sizes: NDArray[np.int32], length: int) -> None:
        windows, documents = sizes.shape
        self.length, self.capacity = (
            length,
            2 * documents,
        )  # a cut fills a row: there are fewer than documents
        self.sizes = length + 1
        self.left = np.count_nonzero(sizes, axis=1)
        self.total = sizes.sum(axis=1, dtype=np.int64)
        self.document = np.zeros((windows, self.capacity), dtype=np.int32)
        self.document[:, :documents] = np.arange(documents)
        self.offset = np.zeros((windows, self.capacity), dtype=np.int32)
        self._stack(sizes)
        self.words = length // 64 + 1
        self._index_sizes()
        self.made = np.full(windows, documents, dtype=np.int64)  # pieces: documents and what cuts have left
        self.placed_pieces = np.zeros(windows, dtype=np.int64)
        self.rows = np.zeros(windows, dtype=np.int64)
        self.placed = np.zeros(windows * self.capacity, dtype=np.int32)
        self.placed_size = np.zeros(windows * self.capacity, dtype=np.int32)
        self.row_first = np.zeros(windows * documents, dtype=np.int32)  # each row uses up a document at least
        self.documents = documents
        self.document, self.offset = self.document.reshape(-1), self.offset.reshape(-1)

    def _stack(self, sizes: NDArray[np.int32]) -> None:
        """``top``: the last piece of each size of a window; ``below``: the one before each; -1 where there is none."""
        windows, documents = sizes.shape
        small = sizes.astype(np.uint16) if self.length < 1 << 16 else sizes  # sorted by radix
        order = np.argsort(small, axis=1, kind="stable")
        ordered = np.take_along_axis(sizes, order, axis=1)
        same = np.zeros((windows, documents), dtype=bool)
        same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        below = np.full((windows, self.capacity), -1, dtype=np.int32)
        before = np.full((windows, documents), -1, dtype=np.int32)
        before[:, 1:] = order[:, :-1]
        np.put_along_axis(below, order, np.where(same, before, -1), axis=1)
        top = np.full((windows, self.sizes), -1, dtype=np.int32)
        last = np.ones((windows, documents), dtype=bool)
        last[:, :-1] = ~same[:, 1:]
        last &= ordered > 0
        rows, columns = np.nonzero(last)
        top[rows, ordered[rows, columns]] = order[rows, columns]
        self.top, self.below = top.reshape(-1), below.reshape(-1)

    def _index_sizes(self) -> None:
        """``bits``: bit n of a window is set where a piece of size n is left; ``mirror``: the bits from last to first.

        ``mirror`` is followed by as many zeros, so that it can be shifted to anywhere.
        """
        windows, width = len(self.left), 64 * self.words
        there = np.zeros((windows, width), dtype=bool)
        there[:, : self.sizes] = self.top.reshape(windows, -1) >= 0
        self.bits = np.packbits(there, axis=1, bitorder="little").view(np.uint64).reshape(-1)
        self.reach = 2 * self.words + 1
        mirror = np.zeros((windows, self.reach), dtype=np.uint64)
        mirror[:, : self.words] = np.packbits(there[:, ::-1], axis=1, bitorder="little").view(np.uint64)
        self.mirror = mirror.reshape(-1)

    def _flip(self, w: Int64Array, n: Int64Array) -> None:
        self.bits[w * self.words + (n >> 6)] ^= _ONE << (n & 63).astype(np.uint64)
        m = 64 * self.words - 1 - n
        self.mirror[w * self.reach + (m >> 6)] ^= _ONE << (m & 63).astype(np.uint64)

    def pop(self, w: Int64Array, n: Int64Array) -> Int64Array:
        """Take the last piece of size ``n`` of each window ``w``; no window comes twice. Returns the pieces (n,)."""
        at = w * self.sizes + n
        piece = self.top[at].astype(np.int64)
        below = self.below[w * self.capacity + piece]
        self.top[at] = below
        gone = _where(below < 0)
        if gone.size:
            self._flip(w[gone], n[gone])
        return piece

    def push(self, w: Int64Array, n: Int64Array, piece: Int64Array) -> None:
        at = w * self.sizes + n
        below = self.top[at]
        self.below[w * self.capacity + piece] = below
        self.top[at] = piece
        new = _where(below < 0)
        if new.size:
            self._flip(w[new], n[new])

    def place(self, w: Int64Array, piece: Int64Array, size: Int64Array) -> None:
        at = w * self.capacity + self.placed_pieces[w]
        self.placed[at] = piece
        self.placed_size[at] = size
        self.placed_pieces[w] += 1
        self.total[w] -= size

    def begin_rows(self, w: Int64Array) -> None:
        self.row_first[w * self.documents + self.rows[w]] = self.placed_pieces[w]
        self.rows[w] += 1

    def cut(self, w: Int64Array, room: Int64Array) -> None:
        """Fill the rows with a part of the largest piece left, and put what remains of it back."""
        n = self.largest(w, np.full(len(w), self.length))
        piece = self.pop(w, n)
        self.place(w, piece, room)
        rest = self.made[w]
        self.made[w] += 1
        old, new = w * self.capacity + piece, w * self.capacity + rest
        self.document[new] = self.document[old]
        self.offset[new] = self.offset[old] + room
        self.push(w, n - room, rest)

    def choose(self, w: Int64Array, room: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The sizes of the one or two pieces to put next into each row, shapes (n,); -1 for none."""
        left, total = self.left[w], self.total[w]
        chosen, partner = np.full(len(w), -1), np.full(len(w), -1)
        begins = room == self.length
        many = begins | (2 * room * left >= 5 * total)  # room for two and a half average pieces, or more
        few = _where(~many)
        if few.size:
            chosen[few], partner[few] = self.best_pair(w[few], room[few])
        if few.size < len(w):
            at = _where(many)
            r, double = room[at], 2 * total[at]
            target = np.where(begins[at], r, r // ((2 * r * left[at] + total[at]) // double))
            chosen[at] = self.nearest(w[at], target, r)
        return chosen, partner

    def largest(self, w: Int64Array, limit: Int64Array) -> Int64Array:
        """The largest size ≤ ``limit`` (n,) that is left in each window, -1 for none."""
        base, q = w * self.words, limit >> 6
        word = self.bits[base + q] & (_ALL >> (63 - (limit & 63)).astype(np.uint64))
        empty = _where(word == 0)
        while empty.size:
            q[empty] -= 1
            empty = empty[q[empty] >= 0]
            word[empty] = self.bits[base[empty] + q[empty]]
            empty = empty[word[empty] == 0]
        return np.where(word == 0, -1, (q << 6) + _highest_bit(word))

    def smallest(self, w: Int64Array, limit: Int64Array) -> Int64Array:
        """The smallest size ≥ ``limit`` (n,) that is left in each window, -1 for none."""
        base, q = w * self.words, limit >> 6
        word = self.bits[base + q] & (_ALL << (limit & 63).astype(np.uint64))
        empty = _where(word == 0)
        while empty.size:
            q[empty] += 1
            empty = empty[q[empty] < self.words]
            word[empty] = self.bits[base[empty] + q[empty]]
            empty = empty[word[empty] == 0]
        return np.where(word == 0, -1, (q << 6) + _lowest_bit(word))

    def nearest(self, w: Int64Array, target: Int64Array, room: Int64Array) -> Int64Array:
        """The size ≤ ``room`` that is nearest to ``target`` ≤ room, the smaller of two; -1 for none."""
        below = self.largest(w, target)
        other = _where((below < target) & (target < room))
        if other.size:
            above = self.smallest(w[other], target[other])
            under, aim = below[other], target[other]
            fits = (above >= 0) & (above <= room[other])
            closer = fits & ((under < 0) | (above - aim < aim - under))
            below[other] = np.where(closer, above, under)
        return below

    def best_pair(self, w: Int64Array, room: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The two sizes, the smaller one first, that fill most of ``room``; or one (and -1), or none.

        Of several pairs of one sum it is the one with the smallest piece, and a pair comes before one piece.
        """
        most = self.largest(w, room)
        one, two = most.copy(), np.full(len(w), -1)
        searched = _where(most > 0)
        total = np.minimum(room, 2 * most)
        for _ in range(TRIES):
            if not searched.size:
                return one, two
            own, sums = w[searched], total[searched]
            first = self._first_of_sum(own, sums)
            found = first > 0
            hit = searched[found]
            one[hit] = first[found]
            two[hit] = sums[found] - first[found]
            searched = searched[~found & (sums > most[searched])]
            total[searched] -= 1
        if searched.size:
            one[searched], two[searched] = self._pair_all(w[searched], room[searched])
        return one, two

    def _first_of_sum(self, w: Int64Array, total: Int64Array) -> Int64Array:
        """The smallest size a that is left together with ``total`` - a; 0 for none."""
        words = np.arange(int(total.max()) // 128 + 1)  # up to half of the sum
        shift = 64 * self.words - 1 - total  # moves bit total - a of the mirror to bit a
        at = (w * self.reach + (shift >> 6))[:, None] + words
        low = (shift & 63).astype(np.uint64)[:, None]
        other = (self.mirror[at] >> low) | ((self.mirror[at + 1] << _ONE) << (np.uint64(63) - low))
        both = self.bits[(w * self.words)[:, None] + words] & other
        q = (both != 0).argmax(axis=1)
        word = both[np.arange(len(w)), q]
        first = np.where(word == 0, 0, (q << 6) + _lowest_bit(word))
        first[2 * first > total] = 0
        halves = _where(2 * first == total)
        if halves.size:  # twice the same size: there must be two pieces of it
            own, n = w[halves], first[halves]
            top = self.top[own * self.sizes + n].astype(np.int64)
            first[halves[self.below[own * self.capacity + top] < 0]] = 0
        return first

    def _pair_all(self, w: Int64Array, room: Int64Array) -> tuple[Int64Array, Int64Array]:
        """`best_pair` by the largest partner of every size."""
        sizes = np.arange(int(room.max()) + 1)
        top = self.top.reshape(-1, self.sizes)[w, : len(sizes)]
        there = (top >= 0) & (sizes <= room[:, None])
        last = np.maximum.accumulate(np.where(there, sizes, -1), axis=1)
        partner = np.take_along_axis(last, np.maximum(room[:, None] - sizes, 0), axis=1)
        below = self.below[(w * self.capacity)[:, None] + np.maximum(top, 0)]
        alone = (partner < 0) | ((partner == sizes) & (below < 0))
        total = np.where(there, sizes + np.where(alone, 0, partner), -1)
        best, rows = total.argmax(axis=1), np.arange(len(w))
        return best, np.where(alone[rows, best], -1, partner[rows, best])

    def result(self) -> PackedWindows:
        windows = len(self.left)
        here = np.arange(self.capacity) < self.placed_pieces[:, None]
        piece = self.placed.reshape(windows, -1)[here]
        at = np.repeat(np.arange(windows) * self.capacity, self.placed_pieces) + piece
        begins = np.arange(self.documents) < self.rows[:, None]
        return PackedWindows(
            self.placed_pieces,
            self.rows,
            self.document[at],
            self.offset[at],
            self.placed_size.reshape(windows, -1)[here],
            self.row_first.reshape(windows, -1)[begins],
        )


def _where(chosen: NDArray[np.bool_]) -> Int64Array:
    """`np.flatnonzero` without what it does before, which counts where windows are few."""
    return chosen.nonzero()[0]


def _highest_bit(word: UInt64Array) -> Int64Array:
    """Number of the highest bit that is set; without the bit below it, a float's exponent is not rounded up."""
    exponent: Int64Array = (word & ~(word >> _ONE)).astype(np.float64).view(np.int64) >> 52
    return exponent - 1023


def _lowest_bit(word: UInt64Array) -> Int64Array:
    return np.bitwise_count((word & (~word + _ONE)) - _ONE).astype(np.int64)
