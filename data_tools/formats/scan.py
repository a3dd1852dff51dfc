"""Where every sample of a shard lies and what is wrong with it, by one pass over the tar's headers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.sidecar import Sidecar
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

_WINDOW = 8 << 20  # bytes read at once


@dataclass
class _Row:
    key: str
    start: int
    end: int
    extensions: list[str]
    fault: str = ""


@dataclass(frozen=True)
class ShardScan:
    """What a scan found: the sidecar, the bad rows by name, how often each extension occurs, shard-wide faults."""

    sidecar: Sidecar
    bad: list[tuple[int, str, str]]  # (row, key or what is left of it, what is wrong)
    extensions: Counter[str]
    faults: list[str] = field(default_factory=list)


class _Checksums:
    """CRC-32 of samples, taken while the scan is near them: bytes of a remote archive are fetched once."""

    def __init__(self, read: tar.Read) -> None:
        self._read = read
        self._known: dict[tuple[int, int], int] = {}

    def take(self, row: _Row) -> int:
        place = row.start, row.end
        if place not in self._known:
            crc = 0
            for offset in range(row.start, row.end, _WINDOW):
                crc = crc32(self._read(offset, min(_WINDOW, row.end - offset)), crc)
            self._known[place] = crc
        return self._known[place]


def scan_shard(read: tar.Read, size: int, with_crc: bool = True) -> ShardScan:
    """Scan an archive of ``size`` bytes; raises TarError if nothing in it is a tar member.

    ``with_crc`` = False reads headers only: the sidecar then has no CRC of the samples.
    """
    checksums = _Checksums(read) if with_crc else None
    rows: list[_Row] = []
    damages: list[tuple[int, tar.Damage]] = []  # (rows seen before it, damage)
    faults: list[str] = []
    for item in tar.members(read, size):
        if isinstance(item, tar.Damage):
            damages.append((len(rows), item))
            continue
        parts = tar.split_name(item.name)
        if parts is None:
            continue
        key, extension = parts
        if rows and rows[-1].key == key:
            row = rows[-1]
            if extension in row.extensions:
                row.fault = f"two members named .{extension}"
            row.extensions.append(extension)
            row.end = item.end
        else:
            if checksums and rows and rows[-1].end - rows[-1].start <= tar.MAX_SAMPLE_BYTES:
                checksums.take(rows[-1])
            rows.append(_Row(key, item.start, item.end, [extension]))
    if not rows:
        raise tar.TarError(
            f"holds no samples; it starts with {read(0, 24)!r}" if size else "the file is empty"
        )
    usual = Counter(tuple(sorted(r.extensions)) for r in rows).most_common(1)[0][0]
    for before, damage in reversed(damages):
        fault = _attribute(rows, before, damage, usual)
        if fault:
            faults.append(fault)
    for row in rows:
        if row.end - row.start > tar.MAX_SAMPLE_BYTES or len(row.extensions) > tar.MAX_SAMPLE_MEMBERS:
            row.fault = f"{len(row.extensions)} members in {row.end - row.start} bytes are beyond the limit"
        row.end = min(row.end, row.start + tar.MAX_SAMPLE_BYTES, size)
    extensions = Counter(e for row in rows if not row.fault for e in row.extensions)
    bad = [(i, row.key, row.fault) for i, row in enumerate(rows) if row.fault]
    return ShardScan(_sidecar(rows, checksums), bad, extensions, faults)


def _attribute(rows: list[_Row], before: int, damage: tar.Damage, usual: tuple[str, ...]) -> str:
    """Charge a damaged stretch to the sample it belongs to; a fault of the whole shard is returned instead."""
    parts = tar.split_name(damage.name)
    around = [
        row for row in rows[max(0, before - 1) : before + 1] if row.start <= damage.start or not row.fault
    ]
    incomplete = [row for row in around if tuple(sorted(row.extensions)) != usual]
    named = [row for row in around if parts and row.key == parts[0]]
    if before and rows[before - 1].end > damage.start:
        named = [rows[before - 1]]  # inside a sample: members of it were found on both sides
    if damage.start == damage.end:  # nothing but the missing end mark: what was cut off is not known here
        for row in incomplete:
            row.fault = row.fault or damage.reason
        return damage.reason
    if damage.may_be_joint and not incomplete:
        return (
            f"{damage.reason} at {damage.start}: the joint of two archives, unless samples are missing there"
        )
    for row in named or incomplete:
        row.fault = damage.reason
    if not named and not incomplete:
        rows.insert(
            before, _Row(damage.name or f"@{damage.start}", damage.start, damage.end, [], damage.reason)
        )
    return ""


def _sidecar(rows: Sequence[_Row], checksums: _Checksums | None) -> Sidecar:
    crc = np.array([checksums.take(row) for row in rows], dtype=np.uint32) if checksums else None
    return Sidecar(
        offset=np.array([r.start for r in rows], dtype=np.uint64),
        size=np.array([r.end - r.start for r in rows], dtype=np.uint32),
        valid=np.array([not r.fault for r in rows], dtype=np.uint8),
        crc=crc,
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


def scan_remote(url: str, with_crc: bool = True) -> ShardScan:
    """Scan a remote tar by range reads; raises UserError naming it when that cannot be done."""
    try:
        size = size_of(url)
        return scan_shard(read_in_windows(url), size, with_crc)
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; check the URL") from None
    except NoRangesError as error:
        raise UserError(
            f"{error}, which an index needs; download the shard, or index it where it lies"
        ) from None
    except tar.TarError as error:
        raise UserError(f"{redacted(url)}: not a usable tar ({error}); check the URL") from None


def read_in_windows(url: str, retry: Retry = PATIENT, window: int = _WINDOW) -> tar.Read:
    """Reads out of large ranges, of which the last few are kept: a scan and its checksums fetch each once."""
    windows = Recent(lambda number: read_range(url, number * window, window, retry), 3)

    def read(offset: int, size: int) -> bytes:
        first, last = offset // window, (offset + size - 1) // window
        data = b"".join(windows(number) for number in range(first, last + 1))
        return data[offset - first * window : offset - first * window + size]

    return read
