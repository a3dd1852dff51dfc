"""Reading tar archives by hand: headers checked and parsed from bytes, nothing ever extracted to a name in them.

A WebDataset sample is a run of consecutive members with one key: ``dir/000123.left.png`` has the key ``dir/000123``
and the extension ``left.png``. Formats: v7, ustar, GNU long names, pax (what ``tar(1)``, ``tarfile`` and
``webdataset`` write).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads archives to whole records
MAX_EXTENDED_HEADER = 1 << 20  # bytes of a long name or pax header; real ones are below a kilobyte
MAX_SAMPLE_BYTES = 2 << 30  # one sample with its headers; lengths are u32 in the sidecar
MAX_SAMPLE_MEMBERS = 256

_ZERO = bytes(BLOCK)
_NAME = re.compile(r"^((?:.*/|)[^./][^./]*)[.]([^/]+)$", re.DOTALL)  # webdataset's base_plus_ext
_REGULAR, _EXTENDED = b"0\0 7", b"LKxgX"


class TarError(ValueError):
    """Bytes that are not the tar member they should be."""


class Header(NamedTuple):
    """One 512-byte header: ``kind`` is the type flag (one byte)."""

    name: str
    size: int
    kind: bytes


class Member(NamedTuple):
    """A regular file: ``start`` of its first header, ``data`` of its payload, ``end`` of its padding (bytes)."""

    name: str
    start: int
    data: int
    size: int
    end: int


class Damage(NamedTuple):
    """Bytes [start, end) that are no member; ``name`` is what can still be read of the header's name."""

    start: int
    end: int
    name: str
    reason: str

    @property
    def may_be_joint(self) -> bool:
        """Whether it looks like the end mark of an archive to which another was appended."""
        return self.reason.endswith("zeros") and (
            self.end - self.start == 2 * BLOCK or self.end % RECORD == 0
        )


def split_name(name: str) -> tuple[str, str] | None:
    """(key, lower-case extension) of a member, or None when it belongs to no sample."""
    match = _NAME.match(name)
    if match is None or (name.startswith("__") and name.endswith("__")):
        return None
    return match.group(1), match.group(2).lower()


def parse_header(block: bytes) -> Header:
    """Check and parse one header block (512 bytes); raises TarError."""
    if len(block) != BLOCK:
        raise TarError(f"header cut after {len(block)} of {BLOCK} bytes")
    if not _checksum_fits(block):
        raise TarError("header checksum does not match")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return Header(name.decode("utf-8", "surrogateescape"), _number(block[124:136]), block[156:157])


def _checksum_fits(block: bytes) -> bool:
    """Whether the sum of the header's bytes is what it says, its checksum field counting as eight spaces.

    adler32's low half is 1 + the sum of all bytes (mod 65521): the sum at the speed of C.
    """
    field = block[148:156]
    try:
        expected = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    return ((zlib.adler32(block) & 0xFFFF) - 1 - sum(field) + 256 - expected) % 65521 == 0


def _number(field: bytes) -> int:
    """A size: octal digits, or base-256 when the first bit is set (GNU, for files over 8 GB)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise TarError("size is no octal number") from None


def padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _pax_records(payload: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while payload:
        length, _, _ = payload.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(payload):
            raise TarError("malformed pax header")
        record = payload[len(length) + 1 : int(length)]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
        payload = payload[int(length) :]
    return records


@dataclass
class _Extended:
    """What extended headers say about the member that follows them."""

    name: str | None = None
    size: int | None = None

    def apply(self, kind: bytes, payload: bytes) -> None:
        if kind == b"L":
            self.name = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind in b"xX":
            records = _pax_records(payload)
            if any(key.startswith("GNU.sparse") for key in records):
                raise TarError("sparse member refused")
            self.name = records.get("path", self.name)
            if "size" in records:
                if not records["size"].isdigit():
                    raise TarError("malformed pax size")
                self.size = int(records["size"])


Read = Callable[[int, int], bytes]  # (offset, size) -> at most size bytes


def _read_member(read: Read, start: int, end: int) -> tuple[Member, bytes]:
    """The member whose first header (extended ones included) lies at ``start``, and its type flag."""
    extended, offset = _Extended(), start
    while True:
        header = parse_header(read(offset, BLOCK))
        offset += BLOCK
        if not header.kind or header.kind not in _EXTENDED:
            break
        if header.size > MAX_EXTENDED_HEADER:
            raise TarError(f"extended header of {header.size} bytes refused")
        extended.apply(header.kind, read(offset, header.size))
        offset += padded(header.size)
    size = header.size if extended.size is None else extended.size
    if not header.kind or header.kind not in _REGULAR:
        size = size if header.kind == b"5" or header.kind not in b"12346" else 0
    name = header.name if extended.name is None else extended.name
    if offset + size > end:
        raise TarError(f"cut: {max(0, end - offset)} of {size} bytes are there")
    return Member(name, start, offset, size, offset + padded(size)), header.kind


def members(read: Read, size: int) -> Iterator[Member | Damage]:
    """Regular members of an archive of ``size`` bytes in order, and the stretches that cannot be read.

    After a damaged header the scan goes on at the next block that is a valid one, so that one flipped bit costs one
    member. Links, devices and folders are passed over.
    """
    offset, closed = 0, False
    while offset < size:
        block = read(offset, BLOCK)
        if block == _ZERO:
            closed = True
            resume = _next_nonzero(read, offset, size)
            if resume is None:
                return
            yield Damage(offset, resume, "", f"{resume - offset} bytes of zeros")
            offset = resume
            continue
        closed = False
        try:
            member, kind = _read_member(read, offset, size)
        except TarError as error:
            resume, name = _next_header(read, offset + BLOCK, size), _readable_name(block)
            if b"PaxHeader" in block[:100] or b"@LongLink" in block[:100]:
                resume, name = _skip_member(read, resume, size)
            yield Damage(offset, resume, name, str(error))
            offset = resume
            continue
        if kind and kind in _REGULAR:
            yield member
        offset = member.end
    if not closed:
        yield Damage(size, size, "", "no end-of-archive mark: the file was cut")


def _next_nonzero(read: Read, offset: int, size: int) -> int | None:
    step = 2048 * BLOCK
    while offset < size:
        data = read(offset, step)
        stripped = data.lstrip(b"\0")
        if stripped:
            return (offset + len(data) - len(stripped)) // BLOCK * BLOCK
        if not data:
            return None
        offset += len(data)
    return None


def _next_header(read: Read, offset: int, size: int) -> int:
    """Offset of the next valid header or of the closing zeros; ``size`` when there is none."""
    while offset < size:
        block = read(offset, BLOCK)
        if block == _ZERO and _next_nonzero(read, offset, size) is None:
            return offset
        if block[257:262] == b"ustar":  # v7 headers have no magic: too weak to find again among payload bytes
            try:
                parse_header(block)
            except TarError:
                pass
            else:
                return offset
        offset += BLOCK
    return size


def _skip_member(read: Read, offset: int, size: int) -> tuple[int, str]:
    """(end, name) of the member whose extended header was damaged: its own name and size cannot be trusted."""
    try:
        header = parse_header(read(offset, BLOCK))
    except TarError:
        return offset, ""
    return _next_header(read, min(size, offset + BLOCK + padded(header.size)), size), header.name


def _readable_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    return name.decode("ascii", "replace") if name.isascii() and name.decode("ascii").isprintable() else ""


def sample_members(raw: bytes, check: bool = True) -> tuple[str, dict[str, memoryview]]:
    """(key, extension → payload) of the bytes of one sample, as the sidecar bounds it; raises TarError.

    ``check`` = False leaves the headers' own checksums alone, for bytes whose CRC was right.
    """
    view = memoryview(raw)
    out: dict[str, memoryview] = {}
    sample_key, offset, end = "", 0, len(raw)
    while offset < end:
        plain = _plain_member(raw, offset, check)
        if plain is None:
            member, kind = _read_member(lambda start, size: raw[start : start + size], offset, end)
            name, data, size, offset = member.name, member.data, member.size, member.end
            if not kind or kind not in _REGULAR:
                continue
        else:
            name, size = plain
            data = offset + BLOCK
            offset = data + (size + BLOCK - 1) // BLOCK * BLOCK
        parts = split_name(name)
        if parts is None:
            continue
        key, extension = parts
        if (sample_key and key != sample_key) or extension in out:
            raise TarError(f"member {name!r} does not belong to sample {sample_key!r}")
        sample_key = key
        out[extension] = view[data : data + size]
    if not out:
        raise TarError("no members")
    return sample_key, out


def _plain_member(raw: bytes, offset: int, check: bool) -> tuple[str, int] | None:
    """(name, size) of a regular ustar member with a short name, the usual case; None for any other."""
    block = raw[offset : offset + BLOCK]
    if len(block) < BLOCK or block[156] != 0x30 or block[345] or block[124] & 0x80:
        return None
    if check and not _checksum_fits(block):
        return None  # the general way says what is wrong
    try:
        size = int(block[124:135], 8)
    except ValueError:
        return None
    if offset + BLOCK + size > len(raw):
        return None
    return block[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), size
