"""From end to end through an archive, damage and all: one flipped bit costs one member, and no byte is read often.

Whatever the bytes are, the time is linear in their number: the search for a header goes forward in large windows and
never returns to where a member has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_tools.formats.tar import (
    BLOCK,
    Member,
    Read,
    TarError,
    checksum_fits,
    looks_extended,
    padded,
    parse_header,
    plain_header,
    read_member,
    tar_number,
)

RECORD = 20 * BLOCK  # tar pads archives to whole records
LONGEST_END = 1 << 20  # bytes of zeros at an archive's end, beyond which it looks like half a download
FIRST_WINDOW, WINDOW = (
    8 * BLOCK,
    2048 * BLOCK,
)  # bytes read at once in search of a header, from the first to the most

_USTAR = np.frombuffer(b"ustar", dtype=np.uint8)
_MAGIC = slice(257, 262)  # v7 headers have none: too weak to be found again among payload bytes


class Damage(NamedTuple):
    """Bytes [start, end) that are no member; ``name`` is what can still be read of the header's name.

    ``may_be_joint``: they look like the end mark of an archive to which another was appended. ``header``: the block
    that could not be parsed. ``is_one_member``: its name is legible, and its size says that no more than this one
    member is lost.
    """

    start: int
    end: int
    name: str
    reason: str
    may_be_joint: bool = False
    header: bytes = b""
    is_one_member: bool = False

    def fits_name(self, name: str) -> bool:
        """Whether the header is right but for its name, and its checksum says that the name was this one."""
        raw = name.encode("utf-8", "surrogateescape")
        return len(raw) == len(self.name) and checksum_fits(raw + self.header[len(raw) :])


def members(read: Read, size: int) -> Iterator[Member | Damage]:
    """The members of an archive of ``size`` bytes in order, of every kind, and the stretches that cannot be read.

    After a damaged header it goes on at the next block that is a valid one.
    """
    offset, archive, closed = 0, 0, False  # archive: where the one that is read began, of several joined
    while offset < size:
        block = read(offset, BLOCK)
        if not any(block):
            closed = True
            resume = _find_filled(read, offset, size)
            if resume is None:
                if size - offset > LONGEST_END:
                    yield Damage(
                        size, size, "", f"ends in {size - offset} bytes of zeros: was it copied whole?"
                    )
                return
            joint = resume - offset == 2 * BLOCK or (resume - archive) % RECORD == 0
            yield Damage(offset, resume, "", f"{resume - offset} bytes of zeros", joint)
            archive = resume if joint else archive
            offset = resume
            continue
        closed = False
        plain = plain_header(block)
        if plain is not None and plain[1] <= size - offset - BLOCK:
            name, length = plain
            data, start, offset = offset + BLOCK, offset, offset + BLOCK + padded(length)
            yield Member(name, b"0", start, data, length, offset)
            continue
        try:
            member = read_member(read, offset, size)
        except TarError as error:
            damage = _find_end(read, offset, size, error)
            yield damage
            offset = damage.end
            continue
        yield member
        offset = member.end
    if not closed:
        yield Damage(size, size, "", "no end-of-archive mark: the file was cut")


def _find_end(read: Read, offset: int, size: int, error: TarError) -> Damage:
    """The stretch that a member at ``offset`` takes which cannot be read, up to the next valid header."""
    seen, block = min(error.at + BLOCK, size), read(error.at, BLOCK)
    name, resume = error.name or _readable_name(block), _find_header(read, seen, size)
    told = _told_size(block)
    one = bool(name) and resume == seen + told
    # Where the member lies whose extended header was damaged: at once, or behind its payload, of one block or as said.
    gaps = (0,) if error.in_extension else (BLOCK, told) if looks_extended(block) else ()
    if resume - seen in gaps:
        one, (name, resume) = False, _pass_over_owner(read, resume, size)
    return Damage(offset, resume, name, str(error), header=block, is_one_member=one)


def _pass_over_owner(read: Read, offset: int, size: int) -> tuple[str, int]:
    """(name, end) of the member at ``offset`` whose extended header was damaged: what is left cannot be trusted."""
    try:
        owner = read_member(read, offset, size)
    except TarError as error:
        return error.name, _find_header(read, min(error.at + BLOCK, size), size)
    return owner.name, _find_header(read, min(size, owner.end), size)


def _told_size(block: bytes) -> int:
    """The bytes that a damaged header says its member takes; -1 where it says nothing."""
    try:
        return padded(tar_number(block[124:136]))
    except (TarError, IndexError):
        return -1


def _find_filled(read: Read, offset: int, size: int) -> int | None:
    """The offset of the next block that is not all zeros."""
    window = FIRST_WINDOW
    while offset < size:
        data = read(offset, window)
        window = min(2 * window, WINDOW)
        stripped = data.lstrip(b"\0")
        if stripped:
            return offset + (len(data) - len(stripped)) // BLOCK * BLOCK
        if not data:
            return None
        offset += len(data)
    return None


def _find_header(read: Read, offset: int, size: int) -> int:
    """The offset of the next valid header, or of the zeros that last to the end; ``size`` when there is neither."""
    zeros = size  # where the zeros begin that have lasted up to here
    window = FIRST_WINDOW
    while offset < size:
        data = read(offset, window)
        window = min(2 * window, WINDOW)
        count = len(data) // BLOCK
        blocks = np.frombuffer(data, dtype=np.uint8, count=count * BLOCK).reshape(count, BLOCK)
        for number in np.flatnonzero((blocks[:, _MAGIC] == _USTAR).all(1)).tolist():
            try:
                parse_header(data[number * BLOCK : (number + 1) * BLOCK])
            except TarError:
                continue
            return offset + int(number) * BLOCK
        filled = np.flatnonzero(blocks.any(1))
        if len(filled):
            zeros = offset + (int(filled[-1]) + 1) * BLOCK
        elif zeros == size:
            zeros = offset
        if not count:
            return size if any(data) else min(zeros, offset)
        offset += count * BLOCK
    return zeros


def _readable_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    return name.decode("ascii", "replace") if name.isascii() and name.decode("ascii").isprintable() else ""
