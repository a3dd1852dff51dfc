"""Where every sample of a shard lies and what is wrong with it, by one pass over the tar's headers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.sidecar import Sidecar
from data_tools.formats.sparse import MAX_SPARSE_BYTES
from data_tools.formats.tar_walk import Damage, members
from data_tools.storage.checksum import crc32
from data_tools.storage.handles import Recent
from data_tools.storage.objects import (
    PATIENT,
    MissingError,
    NoRangesError,
    Retry,
    read_range,
    redacted,
    size_of,
)

APART = (
    "members of one key do not stand together: repack, sorted by name (`tar --sort=name`), so that a sample is one"
    " piece"
)
_WINDOW = 8 << 20  # bytes read at once

Extensions = tuple[str, ...]  # of one sample, sorted


@dataclass
class _Row:
    """A sample, as far as it was seen: bytes [start, end), ``part`` its number among joined archives."""

    key: str
    start: int
    end: int
    part: int
    extensions: dict[str, None] = field(default_factory=dict)
    fault: str = ""
    crc: int = 0
    sparse: int = 0  # bytes of its sparse members, once their zeros are there

    @property
    def kind(self) -> Extensions:
        return tuple(sorted(self.extensions))

    @property
    def beyond_limits(self) -> str:
        if self.sparse > MAX_SPARSE_BYTES:
            return f"sparse members of {self.sparse} bytes; the limit is {MAX_SPARSE_BYTES}"
        if self.end - self.start <= tar.MAX_SAMPLE_BYTES and len(self.extensions) <= tar.MAX_SAMPLE_MEMBERS:
            return ""
        return (
            f"{len(self.extensions)} members in {self.end - self.start} bytes are beyond the limits"
            f" ({tar.MAX_SAMPLE_MEMBERS} members, {tar.MAX_SAMPLE_BYTES} bytes); a key ends at the first dot of the"
            " file's name"
        )


@dataclass(frozen=True)
class ShardScan:
    """What a scan found: the sidecar, the bad rows by name, how often each extension occurs, shard-wide faults."""

    sidecar: Sidecar
    bad: list[tuple[int, str, str]]  # (row, key or what is left of it, what is wrong)
    extensions: Counter[str]
    faults: list[str] = field(default_factory=list)
    kinds: dict[Extensions, tuple[int, str]] = field(default_factory=dict)
    """Of the sound samples, by what members they have: how many, and the first one's key."""


def scan_shard(read: tar.Read, size: int, with_crc: bool = True) -> ShardScan:
    """Scan an archive of ``size`` bytes; one without any sample has an empty sidecar and says why in ``faults``.

    ``with_crc`` = False reads headers only: the sidecar then has no CRC of the samples. Raises TarError if nothing in
    it is a tar member.
    """
    rows: list[_Row] = []
    damages: list[tuple[int, Damage]] = []  # (rows seen before it, damage)
    part, strangers, first_stranger = 0, 0, ""
    for item in members(read, size):
        if isinstance(item, Damage):
            damages.append((len(rows), item))
            part += item.may_be_joint
            continue
        parts = tar.split_name(item.name)
        if parts is None:
            if item.is_file and not _is_hidden(item.name):
                strangers += 1
                first_stranger = first_stranger or item.name
            continue
        if item.is_file or item.refusal:
            _append(rows, item, parts, part, read if with_crc else None)
    if not rows and damages and size:
        raise tar.TarError(f"holds no samples; it starts with {read(0, 24)!r}")
    faults = _attribute(rows, damages)
    if strangers:
        faults.append(
            f"{strangers} files are part of no sample, the first {first_stranger!r}: a name needs an extension"
        )
    if not rows:
        faults = [f"holds no samples: {faults[0] if strangers else 'the archive is empty'}; left out"]
    _find_torn(rows)
    for row in rows:
        row.fault = row.fault or row.beyond_limits
        if row.end - row.start > tar.MAX_SAMPLE_BYTES:  # nobody reads it: its place is enough
            row.end = row.start + tar.BLOCK
        row.end = min(row.end, size)
    sound = [row for row in rows if not row.fault]
    bad = [(i, row.key, row.fault) for i, row in enumerate(rows) if row.fault]
    extensions = Counter(e for row in sound for e in row.extensions)
    return ShardScan(_sidecar(rows, with_crc), bad, extensions, faults, _count_kinds(sound))


def _is_hidden(name: str) -> bool:
    """Whether a file is one that nobody takes for data: hidden, of macOS, or webdataset's own."""
    base = name.rsplit("/", 1)[-1]
    return base.startswith((".", "__")) or "__MACOSX/" in name


def _append(
    rows: list[_Row], item: tar.Member, parts: tuple[str, str], part: int, read: tar.Read | None
) -> None:
    """Add a member to the last row or begin another; ``read`` is for the CRC, None where there is to be none."""
    key, extension = parts
    if not rows or rows[-1].key != key or rows[-1].part != part:
        rows.append(_Row(key, item.start, item.start, part))
    row = rows[-1]
    if extension in row.extensions:
        row.fault = f"two members named .{extension}"
    row.fault = row.fault or item.refusal
    row.sparse += item.sparse.size if item.sparse else 0
    row.extensions[extension] = None
    if read is not None and item.end - row.start <= tar.MAX_SAMPLE_BYTES:
        for at in range(row.end, item.end, _WINDOW):  # what lies between two members belongs to the row
            row.crc = crc32(read(at, min(_WINDOW, item.end - at)), row.crc)
    row.end = item.end


def _attribute(rows: list[_Row], damages: Sequence[tuple[int, Damage]]) -> list[str]:
    """Charge each damaged stretch to the sample it belongs to, a new row where that is none of those found.

    Returns the faults of the whole shard.
    """
    usual = _usual_kinds(rows)
    faults: list[str] = []
    lost: list[_Row] = []
    for before, damage in reversed(damages):
        around = [
            row for row in rows[max(0, before - 1) : before + 1] if row.start <= damage.start or not row.fault
        ]
        incomplete = [row for row in around if row.kind != usual[row.part]]
        if damage.start == damage.end:  # nothing but the missing end mark: what was cut off is not known here
            for row in incomplete:
                row.fault = row.fault or damage.reason
            faults.append(damage.reason)
            continue
        charged = _owners(rows, before, damage, around, incomplete)
        if damage.may_be_joint and not charged:
            faults.append(
                f"{damage.reason} at {damage.start}: the joint of two archives, unless samples are missing there"
            )
            continue
        for row in charged:
            row.fault = damage.reason
        if not charged:
            name = damage.name or f"@{damage.start}"
            lost.append(_Row(name, damage.start, damage.end, -1, fault=damage.reason))
    rows += lost
    rows.sort(key=lambda row: row.start)
    return faults[::-1]


def _owners(
    rows: list[_Row], before: int, damage: Damage, around: list[_Row], incomplete: list[_Row]
) -> list[_Row]:
    """The rows that a damaged stretch belongs to; none where it was a sample of its own."""
    if before and rows[before - 1].end > damage.start:
        return [rows[before - 1]]  # inside a sample: members of it were found on both sides
    alone = (
        damage.is_one_member and tar.split_name(damage.name) is not None
    )  # it took no other member with it
    return [
        row for row in around if _is_of(damage, row, row in incomplete) or (row in incomplete and not alone)
    ]


def _is_of(damage: Damage, row: _Row, incomplete: bool) -> bool:
    """Whether a damaged header is of a member that the row lacks, by its name or, were it damaged, by its checksum."""
    name = f"{row.key}.{damage.name[len(row.key) + 1 :]}"
    parts = tar.split_name(name)
    if parts is None or parts[0] != row.key or parts[1] in row.extensions:
        return False
    return name == damage.name or (incomplete and damage.fits_name(name))


def _usual_kinds(rows: Sequence[_Row]) -> dict[int, Extensions]:
    """What members most samples have, for each of the archives that were joined; of equally many, the most.

    One or two samples show no rule: where they have a part of what is usual in the whole shard, that is theirs too.
    """
    often: dict[int, Counter[Extensions]] = {}
    for (part, kind), count in Counter((row.part, row.kind) for row in rows).items():
        often.setdefault(part, Counter())[kind] = count
    whole = _most(Counter(row.kind for row in rows))
    usual = {part: _most(kinds) for part, kinds in often.items()}
    return {
        part: whole if often[part].total() < 3 and set(kind) < set(whole) else kind
        for part, kind in usual.items()
    }


def _most(often: Counter[Extensions]) -> Extensions:
    return max(often, key=lambda kind: (often[kind], len(kind), kind), default=())


def _find_torn(rows: Iterable[_Row]) -> None:
    """Mark rows of one key that hold different members: they are one sample, torn apart."""
    by_key: dict[str, list[_Row]] = {}
    for row in rows:
        if row.extensions:
            by_key.setdefault(row.key, []).append(row)
    for same in by_key.values():
        if len(same) > 1 and not set(same[0].extensions).intersection(*(row.extensions for row in same[1:])):
            for row in same:
                row.fault = row.fault or APART


def _count_kinds(rows: Iterable[_Row]) -> dict[Extensions, tuple[int, str]]:
    kinds: dict[Extensions, tuple[int, str]] = {}
    for row in rows:
        count, first = kinds.get(row.kind, (0, row.key))
        kinds[row.kind] = (count + 1, first)
    return kinds


def _sidecar(rows: Sequence[_Row], with_crc: bool) -> Sidecar:
    return Sidecar(
        offset=np.array([r.start for r in rows], dtype=np.uint64),
        size=np.array([r.end - r.start for r in rows], dtype=np.uint32),
        valid=np.array([not r.fault for r in rows], dtype=np.uint8),
        crc=np.array([r.crc for r in rows], dtype=np.uint32) if with_crc else None,
    )


def scan_file(path: Path, with_crc: bool = True) -> ShardScan:
    """Scan a local tar; raises UserError naming it when it is missing or no tar."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        return scan_shard(lambda o, n: os.pread(handle, n, o), os.fstat(handle).st_size, with_crc)
    except (tar.TarError, OSError) as error:
        raise UserError(
            f"{path}: not a usable tar ({error}); remove it from the shards or fetch it again"
        ) from None
    finally:
        os.close(handle)


def scan_remote(url: str, with_crc: bool = True, retry: Retry = PATIENT) -> ShardScan:
    """Scan a remote tar by range reads; raises UserError naming it when that cannot be done."""
    try:
        size = size_of(url, retry)
        return scan_shard(read_in_windows(url, size, retry), size, with_crc)
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; check the URL") from None
    except NoRangesError as error:
        raise UserError(
            f"{error}, which an index needs; download the shard, or index it where it lies"
        ) from None
    except tar.TarError as error:
        raise UserError(f"{redacted(url)}: not a usable tar ({error}); check the URL") from None


def read_in_windows(url: str, size: int, retry: Retry = PATIENT, window: int = _WINDOW) -> tar.Read:
    """Reads out of large ranges, of which the last few are kept: a scan and its checksums fetch each once.

    They raise UserError where less comes of the ``size`` bytes that the object has: what did not come is neither a cut
    archive nor damage.
    """
    windows = Recent(lambda number: read_range(url, number * window, window, retry), 3)

    def read(offset: int, wanted: int) -> bytes:
        first, last = offset // window, (offset + wanted - 1) // window
        data = b"".join(windows(number) for number in range(first, last + 1))
        data = data[offset - first * window : offset - first * window + wanted]
        if len(data) < min(wanted, size - offset):
            raise UserError(
                f"{redacted(url)}: the store sends less than the {size:,} bytes it has; try again, or copy it here"
            )
        return data

    return read
