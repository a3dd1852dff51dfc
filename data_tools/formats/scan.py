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
from data_tools.storage.objects import MissingError, NoRangesError, read_range, redacted, size_of


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


def scan_shard(read: tar.Read, size: int, with_crc: bool = False) -> ShardScan:
    """Scan an archive of ``size`` bytes; raises TarError if nothing in it is a tar member."""
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
    return ShardScan(_sidecar(rows, read if with_crc else None), bad, extensions, faults)


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


def _sidecar(rows: Sequence[_Row], read: tar.Read | None) -> Sidecar:
    crc = None
    if read is not None:
        crc = np.array([crc32(read(r.start, r.end - r.start)) for r in rows], dtype=np.uint32)
    return Sidecar(
        offset=np.array([r.start for r in rows], dtype=np.uint64),
        size=np.array([r.end - r.start for r in rows], dtype=np.uint32),
        valid=np.array([not r.fault for r in rows], dtype=np.uint8),
        crc=crc,
    )


def scan_file(path: Path, with_crc: bool = False) -> ShardScan:
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


def scan_remote(url: str, with_crc: bool = False) -> ShardScan:
    """Scan a remote tar by range reads; raises UserError naming it when that cannot be done."""
    try:
        size = size_of(url)
        return scan_shard(_buffered(url), size, with_crc)
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; check the URL") from None
    except NoRangesError as error:
        raise UserError(
            f"{error}, which an index needs; download the shard, or index it where it lies"
        ) from None
    except tar.TarError as error:
        raise UserError(f"{redacted(url)}: not a usable tar ({error}); check the URL") from None


def _buffered(url: str, window: int = 8 << 20) -> tar.Read:
    """Small reads out of large ranges: headers lie one after the other."""
    start, held = 0, b""

    def read(offset: int, size: int) -> bytes:
        nonlocal start, held
        if not (start <= offset and offset + size <= start + len(held)):
            start, held = offset, read_range(url, offset, max(size, window))
        return held[offset - start : offset - start + size]

    return read
