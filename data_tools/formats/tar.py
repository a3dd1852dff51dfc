"""Reading tar archives by hand: headers checked and parsed from bytes, nothing ever extracted to a name in them.

A WebDataset sample is a run of consecutive members with one key: ``dir/000123.left.png`` has the key ``dir/000123``
and the extension ``left.png``. Formats: v7, ustar, GNU long names, pax (what ``tar(1)``, ``tarfile`` and
``webdataset`` write), and GNU's sparse members.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from data_tools.formats.sparse import (
    MAX_SPARSE_BYTES,
    SparseMap,
    check_map,
    expand,
    read_header_map,
    read_pax_map,
)

BLOCK = 512
MAX_EXTENDED_HEADER = 1 << 20  # bytes of a long name or pax header; real ones are below a kilobyte
MAX_EXTENDED_HEADERS = 16  # before one member; real ones have four at most
MAX_SAMPLE_BYTES = (2 << 30) - 4096  # one sample with its headers: what Linux reads at once
MAX_SAMPLE_MEMBERS = 256

_NAME = re.compile(r"^((?:.*/|)[^./][^./]*)[.]([^/]+)$", re.DOTALL)  # webdataset's base_plus_ext
_REGULAR, _EXTENDED, _SPARSE = b"0\0 7", b"LKxgX", b"S"
_NO_FILES = b"5gDVN"  # folders, and what is said about the archive


class TarError(ValueError):
    """Bytes that are not the tar member they should be.

    ``at`` is the block at which they stop being understood, ``name`` the member's as far as it is known;
    ``in_extension`` says that it is the end of a long name or of pax records, which were at fault.
    """

    def __init__(self, reason: str, at: int = 0, name: str = "", in_extension: bool = False) -> None:
        super().__init__(reason)
        self.at, self.name, self.in_extension = at, name, in_extension


class Header(NamedTuple):
    """One 512-byte header: ``kind`` is the type flag (one byte)."""

    name: str
    size: int
    kind: bytes


class Member(NamedTuple):
    """A member: ``start`` of its first header, ``data`` of its ``size`` stored bytes, ``end`` of its padding.

    ``sparse`` is the map of a sparse file; ``refusal`` says why the bytes of a file are not to be had, or is empty.
    """

    name: str
    kind: bytes
    start: int
    data: int
    size: int
    end: int
    sparse: SparseMap | None = None
    refusal: str = ""

    @property
    def is_file(self) -> bool:
        return self.kind in (b"0", b"\0", b" ", b"7", b"S")

    def payload(self, view: memoryview) -> memoryview:
        """The file's bytes, where ``view`` is what ``start`` and the other offsets count in."""
        stored = view[self.data : self.data + self.size]
        return stored if self.sparse is None else expand(stored, self.sparse)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, lower-case extension) of a member, or None when it belongs to no sample.

    The key ends at the first dot of the base name. Hidden files, what macOS adds (``._x``, ``__MACOSX/``) and
    webdataset's own ``__meta__`` belong to none.
    """
    match = _NAME.match(name)
    if match is None or (name.startswith("__") and name.endswith("__")) or "__MACOSX/" in name:
        return None
    key, extension = match.groups()
    return key, extension.lower()


def escape_key(key: str) -> str:
    """The key with each dot of its base name as ``%2E``, since a reader would end it at the first one.

    An empty base name, which no reader takes for a key, becomes ``_``.
    """
    folder, slash, base = key.rpartition("/")
    return folder + slash + (base.replace(".", "%2E") or "_")


def parse_header(block: bytes) -> Header:
    """Check and parse one header block (512 bytes); raises TarError."""
    if len(block) != BLOCK:
        raise TarError(f"header cut after {len(block)} of {BLOCK} bytes")
    if not checksum_fits(block):
        raise TarError("header checksum does not match")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return Header(name.decode("utf-8", "surrogateescape"), tar_number(block[124:136]), block[156:157])


def checksum_fits(block: bytes) -> bool:
    """Whether the sum of the header's bytes is what it says, its checksum field counting as eight spaces.

    adler32's low half is 1 + the sum of all bytes (mod 65521): sums at the speed of C.
    """
    field = block[148:156]
    try:
        expected = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    others = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(field) & 0xFFFF)
    return (others + 256 - expected) % 65521 == 0


def tar_number(field: bytes) -> int:
    """A number of a header: octal digits, or base-256 when the first bit is set (GNU, for files over 8 GB)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip() or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:  # int() would take signs and underscores
        raise TarError("size is no octal number")
    return int(digits, 8)


def padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


_SPARSE_RECORD = b"GNU.sparse."


def _pax_records(payload: bytes) -> list[tuple[str, str]]:
    """(key, value) of the records that say something here, in order: GNU's sparse maps repeat keys."""
    records, at = [], 0
    while at < len(payload):
        space = payload.find(b" ", at, at + 8)
        length = payload[at:space]
        if space < 0 or not length.isdigit() or not space < at + int(length) <= len(payload):
            raise TarError("malformed pax header")
        key, _, value = payload[space + 1 : at + int(length)].partition(b"=")
        if key in (b"path", b"size") or key.startswith(_SPARSE_RECORD):
            records.append((key.decode("latin-1"), value.rstrip(b"\n").decode("utf-8", "surrogateescape")))
        at += int(length)
    return records


@dataclass
class _Extended:
    """What extended headers say about the member that follows them."""

    name: str | None = None
    size: int | None = None
    sparse: list[tuple[str, str]] = field(default_factory=list)  # records of GNU.sparse, without that prefix

    def apply(self, kind: bytes, payload: bytes) -> None:
        if kind == b"L":
            self.name = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind in b"xX":
            records = _pax_records(payload)
            said = dict(records)
            prefix = _SPARSE_RECORD.decode()
            self.sparse += [(k.removeprefix(prefix), v) for k, v in records if k.startswith(prefix)]
            self.name = said.get(f"{prefix}name", said.get("path", self.name))
            if "size" in said:
                if not re.fullmatch("[0-9]{1,19}", said["size"]):
                    raise TarError("malformed pax size")
                self.size = int(said["size"])


Read = Callable[[int, int], bytes]  # (offset, size) -> at most size bytes


def read_member(read: Read, start: int, end: int) -> Member:
    """The member whose first header (extended ones included) lies at ``start``; it must end before ``end``.

    Raises TarError, which says how far the bytes were understood.
    """
    extended, offset, in_extension = _Extended(), start, False
    try:
        for _ in range(MAX_EXTENDED_HEADERS + 1):
            block = read(offset, BLOCK)
            header = parse_header(block)
            if header.kind not in _EXTENDED:
                return _place(read, start, offset + BLOCK, end, block, header, extended)
            if header.size > MAX_EXTENDED_HEADER:
                raise TarError(f"extended header of {header.size} bytes refused")
            payload = read(offset + BLOCK, header.size)
            offset += padded(header.size)
            in_extension = True
            extended.apply(header.kind, payload)
            in_extension = False
            offset += BLOCK
        raise TarError(f"more than {MAX_EXTENDED_HEADERS} extended headers")
    except TarError as error:
        raise TarError(str(error), offset, extended.name or "", in_extension) from None


def looks_extended(block: bytes) -> bool:
    """Whether a damaged header is that of a long name or of pax records, by its name, one byte of which may be hit."""
    usual = (b"././@LongLink", b"././@PaxHeader")
    return b"PaxHeader" in block[:100] or any(
        len(block) == BLOCK and sum(a != b for a, b in zip(name, block, strict=False)) <= 1 for name in usual
    )


def _place(
    read: Read, start: int, offset: int, end: int, block: bytes, header: Header, extended: _Extended
) -> Member:
    """The member of a header (``block`` and what was parsed of it) whose payload begins at ``offset``."""
    name, kind = header.name if extended.name is None else extended.name, header.kind
    size = header.size if extended.size is None else extended.size
    if kind in b"12346":  # links, devices: whatever their size says, no bytes follow
        size = 0
    sparse, refusal, data = None, _refusal(name, kind, block), offset
    try:
        if kind == _SPARSE:
            sparse, taken = read_header_map(block, tar_number, lambda n: read(offset + n * BLOCK, BLOCK))
            data = offset = offset + taken
        elif extended.sparse and not refusal:
            sparse, taken = read_pax_map(
                extended.sparse, lambda at, n: read(offset + at, max(0, min(n, size - at)))
            )
            data += taken
        if sparse is not None:
            check_map(sparse, offset + size - data)
    except ValueError as error:
        sparse, refusal = None, str(error)
    if offset + size > end:
        raise TarError(f"cut: {max(0, end - offset)} of {size} bytes are there")
    return Member(name, kind, start, data, offset + size - data, offset + padded(size), sparse, refusal)


def _refusal(name: str, kind: bytes, block: bytes) -> str:
    """Why a member has no bytes to give; empty for files, and for what says nothing about a file."""
    if kind in b"12":
        target = block[157:257].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        remedy = "--hard-dereference" if kind == b"1" else "--dereference"
        link = "hard" if kind == b"1" else "symbolic"
        return f"{name} is a {link} link to {target}, without bytes of its own: repack with `tar {remedy}`"
    if kind in _REGULAR or kind in _SPARSE:
        return "the map of a sparse member is lost" if "GNUSparseFile." in name else ""
    return "" if kind in _NO_FILES else f"{name} is no file (tar type {kind!r})"


def first_member(start: bytes, size: int) -> Member:
    """The plain file that a sample of ``size`` bytes begins with, by the first bytes of it; raises TarError."""
    member = read_member(lambda offset, count: start[offset : offset + count], 0, size)
    if not member.is_file or member.sparse or member.refusal:
        raise TarError("does not begin with a plain file")
    return member


def sample_key(read: Read, size: int) -> str:
    """The key of a sample of ``size`` bytes, by the headers of its first member that has one; raises TarError."""
    offset = 0
    while offset < size:
        member = read_member(read, offset, size)
        parts = split_name(member.name)
        if member.is_file and parts is not None:
            return parts[0]
        offset = member.end
    raise TarError("no members")


def sample_members(raw: bytes, check: bool = True) -> tuple[str, dict[str, memoryview]]:
    """(key, extension → payload) of the bytes of one sample, as the sidecar bounds it; raises TarError.

    ``check`` = False leaves the headers' own checksums alone, for bytes whose CRC was right.
    """
    view = memoryview(raw)
    out: dict[str, memoryview] = {}
    sample_key, offset, end = "", 0, len(raw)
    room = MAX_SPARSE_BYTES
    while offset < end:
        plain = plain_header(raw[offset : offset + BLOCK], check)
        if plain is None or plain[1] > end - offset - BLOCK:
            member = read_member(lambda start, size: raw[start : start + size], offset, end)
            name, offset = member.name, member.end
            if not member.is_file:
                continue
            room -= member.sparse.size if member.sparse else 0
            if member.refusal or room < 0:
                raise TarError(member.refusal or f"sparse members of more than {MAX_SPARSE_BYTES} bytes")
            payload = member.payload(view)
        else:
            name, size = plain
            payload = view[offset + BLOCK : offset + BLOCK + size]
            offset += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
        parts = split_name(name)
        if parts is None:
            continue
        key, extension = parts
        if (sample_key and key != sample_key) or extension in out:
            raise TarError(f"member {name!r} does not belong to sample {sample_key!r}")
        sample_key = key
        out[extension] = payload
    if not out:
        raise TarError("no members")
    return sample_key, out


def plain_header(block: bytes, check: bool = True) -> tuple[str, int] | None:
    """(name, size) of the header of a regular ustar member with a short name, the usual case; None for any other."""
    if len(block) < BLOCK or block[156] != 0x30 or block[345] or block[124] & 0x80 or block[135] > 0x20:
        return None
    if check and not checksum_fits(block):
        return None  # the general way says what is wrong
    try:
        size = int(block[124:135], 8)
    except ValueError:
        return None
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return None if size < 0 or "GNUSparseFile." in name else (name, size)
