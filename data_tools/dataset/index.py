"""Sidecars and a manifest for anyone's tars, by a scan of their headers."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import Manifest, Shard, make_manifest, write_manifest
from data_tools.formats.sidecar import Sidecar
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once
from data_tools.storage.checksum import crc32
from data_tools.storage.objects import (
    MissingError,
    NoRangesError,
    Retry,
    is_remote,
    read_range,
    read_whole,
    redacted,
    size_of,
)
from data_tools.storage.retry import PATIENT
from data_tools.storage.segments import FetchOptions
from data_tools.storage.urls import name_of

MAX_UNPACKED_RATIO = 200  # gzip of real data stays under 20; beyond this it is a bomb


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


def scan_remote(url: str, with_crc: bool = False, retry: Retry = PATIENT) -> ShardScan:
    """Scan a remote tar by range reads; raises UserError naming it when that cannot be done."""
    try:
        size = size_of(url, retry)
        return scan_shard(_buffered(url, retry), size, with_crc)
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; check the URL") from None
    except NoRangesError as error:
        raise UserError(
            f"{error}, which an index needs; download the shard, or index it where it lies"
        ) from None
    except tar.TarError as error:
        raise UserError(f"{redacted(url)}: not a usable tar ({error}); check the URL") from None


def _buffered(url: str, retry: Retry, window: int = 8 << 20) -> tar.Read:
    """Small reads out of large ranges: headers lie one after the other."""
    start, held = 0, b""

    def read(offset: int, size: int) -> bytes:
        nonlocal start, held
        if not (start <= offset and offset + size <= start + len(held)):
            start, held = offset, read_range(url, offset, max(size, window), retry)
        return held[offset - start : offset - start + size]

    return read


def identity(name: str, retry: Retry = PATIENT) -> str:
    """A text that changes when the file or object does; raises UserError when there is none."""
    if is_remote(name):
        try:
            return f"{redacted(name)}\0{size_of(name, retry)}"
        except MissingError as error:
            raise UserError(f"{error}: cannot be read; check the URL") from None
    try:
        status = Path(name).stat()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); check the path") from None
    return f"{Path(name).resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


def unpack(name: str, fetching: FetchOptions) -> str:
    """A gzipped tar, unpacked once into the cache, since samples cannot be read from the middle of gzip."""
    if not name_of(name).endswith(("gz", "GZ")):
        return name
    digest = hashlib.blake2b(identity(name, fetching.retry).encode(), digest_size=16).hexdigest()

    def build(folder: Path) -> None:
        packed = Path(name)
        if is_remote(name):
            packed = folder / "packed"
            read_whole(name, packed, fetching.retry)
        _gunzip(packed, folder / "shard.tar", redacted(name))
        (folder / "packed").unlink(missing_ok=True)

    return str(build_once(fetching.cache / "unpacked" / digest, build) / "shard.tar")


def _gunzip(packed: Path, target: Path, name: str) -> None:
    limit = max(MAX_UNPACKED_RATIO * packed.stat().st_size, 64 << 20)
    try:
        with gzip.open(packed) as source, target.open("wb") as file:
            while block := source.read(8 << 20):
                file.write(block)
                if file.tell() > limit:
                    raise ValueError(f"unpacks to more than {MAX_UNPACKED_RATIO} times its size")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{name}: not a usable gzipped tar ({error}); fetch it again") from None


def _index_one(with_crc: bool, work: Path, retry: Retry, numbered: tuple[int, str]) -> Receipt:
    number, name = numbered
    found = scan_remote(name, with_crc, retry) if is_remote(name) else scan_file(Path(name), with_crc)
    data = found.sidecar.to_bytes()
    write_atomically(work / f"{number:08d}.sidecar", data)
    size = size_of(name, retry) if is_remote(name) else Path(name).stat().st_size
    return {
        "samples": len(found.sidecar),
        "bad_count": found.sidecar.bad,
        "bytes": size,
        "checksum": crc32(data),
        "extensions": dict(found.extensions),
        "bad": [[key, fault] for _, key, fault in found.bad] + [["", fault] for fault in found.faults],
    }


def index_shards(
    names: Iterable[str | Path],
    folder: Path,
    with_crc: bool = False,
    processes: int | None = None,
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> tuple[Manifest, list[tuple[str, str, str]]]:
    """Index tars (paths or URLs) into ``folder``; returns the manifest and the bad samples (shard, key, fault).

    Shards inside ``folder`` are listed by relative name, others by absolute path or URL. Raises UserError when one
    is no tar or there is none at all; no manifest is written then, and the scans done so far are kept for the next
    attempt.
    """
    files = [unpack(name, fetching) for name in map(str, names)]
    if not files:
        raise UserError(f"{folder}: no .tar files to index; give a folder of WebDataset shards")
    described = "\n".join([str(with_crc), *(identity(name, fetching.retry) for name in files)])
    work = folder / ".index" / hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
    few = len(files) < 16  # a spawned process costs more than some small scans
    scan = partial(_index_one, with_crc, work, fetching.retry)
    cores = 1 if few and processes is None else processes
    found = run_jobs(scan, list(enumerate(files)), "index", work / "receipts", cores, quiet=few)
    assert found is not None, "all parts ran here"
    root = folder.resolve()
    shards, bad, extensions = [], [], Counter[str]()
    for name, receipt in zip(files, found, strict=True):
        url = redacted(name) if is_remote(name) else _relative(Path(name).resolve(), root)
        shards.append(
            Shard(url, receipt["samples"], receipt["bad_count"], receipt["bytes"], receipt["checksum"])
        )
        extensions.update(receipt["extensions"])
        bad += [(url, key, fault) for key, fault in receipt["bad"]]
    manifest = make_manifest(shards, tuple(sorted(extensions)))
    for number in range(len(files)):
        target = folder / manifest.sidecar_name(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        (work / f"{number:08d}.sidecar").replace(target)
    write_manifest(manifest, folder)
    shutil.rmtree(folder / ".index")
    return manifest, bad


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
