"""Sparse members, as GNU tar writes them: a map of the pieces that are stored; all between them is zeros.

Forms: the old GNU header (type ``S``) and pax records ``GNU.sparse.*`` 0.0, 0.1 and 1.0
(https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_SPARSE_BYTES = 256 << 20  # of the whole member; its zeros cost the archive nothing, but memory here
MAX_PIECES = 1 << 16

_BLOCK = 512
_MAP_IN_HEADER, _MAP_IN_EXTENSION = 4, 21  # entries of 24 bytes


class SparseMap(NamedTuple):
    """``size`` of the whole member and its stored ``pieces`` (offset, bytes), in the order in which they are stored."""

    size: int
    pieces: tuple[tuple[int, int], ...]


def check_map(sparse: SparseMap, stored: int) -> SparseMap:
    """The map itself; raises ValueError when it does not fit the ``stored`` bytes, or is beyond the limits."""
    if sparse.size > MAX_SPARSE_BYTES:
        raise ValueError(f"a sparse member of {sparse.size} bytes; the limit is {MAX_SPARSE_BYTES}")
    if len(sparse.pieces) > MAX_PIECES:
        raise ValueError(f"a sparse member in more than {MAX_PIECES} pieces")
    if any(offset + size > sparse.size for offset, size in sparse.pieces):
        raise ValueError("a sparse member whose map reaches beyond its end")
    if sum(size for _, size in sparse.pieces) != stored:
        raise ValueError("a sparse member whose map does not fit the bytes that are stored")
    return sparse


def expand(stored: memoryview, sparse: SparseMap) -> memoryview:
    """The whole member, ``sparse.size`` bytes, of the bytes that are stored."""
    whole, at = bytearray(sparse.size), 0
    for offset, size in sparse.pieces:
        whole[offset : offset + size] = stored[at : at + size]
        at += size
    return memoryview(whole)


def read_header_map(
    header: bytes, number: Callable[[bytes], int], read_block: Callable[[int], bytes]
) -> tuple[SparseMap, int]:
    """(map, bytes that it takes after the header) of an old GNU header (512 bytes).

    ``number`` parses a tar number, ``read_block`` reads the n-th block after the header. Raises ValueError.
    """
    pieces, extensions = _entries(header[386:482], _MAP_IN_HEADER, number), 0
    more = header[482]
    while more:
        if len(pieces) > MAX_PIECES:
            raise ValueError(f"a sparse member in more than {MAX_PIECES} pieces")
        block = read_block(extensions)
        if len(block) != _BLOCK:
            raise ValueError("a sparse map that is cut")
        pieces += _entries(block, _MAP_IN_EXTENSION, number)
        more = block[504]
        extensions += 1
    return SparseMap(number(header[483:495]), tuple(pieces)), extensions * _BLOCK


def _entries(table: bytes, count: int, number: Callable[[bytes], int]) -> list[tuple[int, int]]:
    rows = [table[24 * i : 24 * i + 24] for i in range(count)]
    return [(number(row[:12]), number(row[12:])) for row in rows if row[:1] != b"\0"]


def read_pax_map(
    records: Sequence[tuple[str, str]], read: Callable[[int, int], bytes]
) -> tuple[SparseMap, int]:
    """(map, bytes that it takes at the head of the payload) of ``GNU.sparse.*`` records, without that prefix.

    ``read`` (offset, size) reads the payload, which begins with the map in form 1.0. Raises ValueError.
    """
    said = dict(records)
    size = _natural(said.get("realsize") or said.get("size") or "")
    if said.get("major") == "1":
        numbers, taken = _read_numbers(read)
        return SparseMap(size, _pairs(numbers)), taken
    if "map" in said:
        return SparseMap(size, _pairs([_natural(text) for text in said["map"].split(",") if text])), 0
    numbers = [_natural(value) for name, value in records if name in ("offset", "numbytes")]
    return SparseMap(size, _pairs(numbers)), 0


def _read_numbers(read: Callable[[int, int], bytes]) -> tuple[list[int], int]:
    """The numbers of a map of form 1.0, one a line after their count, and the whole blocks that it takes."""
    text, wanted = b"", 1
    lines: list[bytes] = []
    while len(lines) <= wanted:  # the last one may be half
        more = read(len(text), 64 * _BLOCK if text else _BLOCK)
        if not more:
            raise ValueError("a sparse map that is cut")
        text += more
        lines = text.split(b"\n", 2 * MAX_PIECES + 2)
        if len(lines) > 1:
            wanted = 1 + 2 * _natural(lines[0].decode("latin-1"))
        if wanted > 2 * MAX_PIECES:
            raise ValueError(f"a sparse member in more than {MAX_PIECES} pieces")
        if len(text) > 32 * wanted + 64 * _BLOCK:
            raise ValueError("a sparse map that is no list of numbers")
    taken = sum(len(line) + 1 for line in lines[:wanted])
    return [_natural(line.decode("latin-1")) for line in lines[1:wanted]], -(-taken // _BLOCK) * _BLOCK


def _pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2:
        raise ValueError("a sparse map with half a piece")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError("a sparse map that is no list of numbers")
    return int(text)
