"""Stretches of tokens: what is fetched at once of a remote shard, from the middle of one document to that of another.

Of a document that has a CRC for each block, the blocks that hold its tokens; of any other one the whole.
"""

from __future__ import annotations

from typing import NamedTuple

from data_tools.formats.sidecar import BLOCK, LARGE, Sidecar

HEADERS = 640
"""Bytes before the tokens in a sample of ours: tar's header, and npy's."""


class Stretch(NamedTuple):
    """From token ``begin`` of a shard's ``first`` document to before token ``end`` of its ``last``, -1: to the end.

    ``once``: for a single row, so that nobody else needs it.
    """

    first: int
    begin: int
    last: int
    end: int
    once: bool

    @property
    def name(self) -> str:
        """Of the tokens, among stretches of the same documents."""
        return f".{self.begin}-{'' if self.end < 0 else self.end}"


def find_held(sidecar: Sidecar, row: int, begin: int, end: int) -> tuple[int, int]:
    """The bytes [first, stop) of a document that are fetched for its tokens [``begin``, ``end``), -1: to the last one.

    Tokens come first in a sample of ours. Where they lie elsewhere, the blocks that lack are fetched by themselves.
    """
    size = int(sidecar.size[row])
    if sidecar.blocks is None or size <= LARGE or sidecar.length is None:
        return 0, size
    width = guess_width(int(sidecar.length[row]), size)
    first = (HEADERS + begin * width) // BLOCK * BLOCK
    stop = size if end < 0 else min(size, -(-(HEADERS + end * width) // BLOCK) * BLOCK)
    return (first if first > BLOCK else 0), stop


def find_range(sidecar: Sidecar, first: int, last: int, stretch: Stretch) -> tuple[int, int]:
    """(offset in the shard, bytes) of a stretch of documents from row ``first`` to row ``last`` of its sidecar."""
    alone = first == last
    begin = find_held(sidecar, first, stretch.begin, stretch.end if alone else -1)[0]
    end = find_held(sidecar, last, stretch.begin if alone else 0, stretch.end)[1]
    start = int(sidecar.offset[first]) + begin
    return start, int(sidecar.offset[last]) + end - start


def guess_width(tokens: int, size: int) -> int:
    """Bytes of a token in a sample of ``size`` bytes: the most that fit."""
    return next((width for width in (8, 4, 2) if width * tokens < size), 1)
