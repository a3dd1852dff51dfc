"""Sidecars and a manifest for anyone's tars, scanned in parallel."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from data_tools.dataset.incomplete import find_incomplete
from data_tools.dataset.shard_files import GZIPPED
from data_tools.errors import UserError
from data_tools.formats.manifest import Manifest, Shard, make_manifest, write_manifest
from data_tools.formats.scan import scan_file, scan_remote
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once, cache_folder
from data_tools.storage.checksum import crc32
from data_tools.storage.objects import (
    MissingError,
    is_remote,
    read_whole,
    redacted,
    size_of,
)

MAX_UNPACKED_RATIO = 200  # gzip of real data stays under 20; beyond this it is a bomb


def identity(name: str) -> str:
    """A text that changes when the file or object does; raises UserError when there is none."""
    if is_remote(name):
        try:
            return f"{name}\0{size_of(name)}"
        except MissingError as error:
            raise UserError(f"{error}: cannot be read; check the URL") from None
    try:
        status = Path(name).stat()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); check the path") from None
    return f"{Path(name).resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


def _unpacked(name: str) -> str:
    """A gzipped tar, unpacked once into the cache, since samples cannot be read from the middle of gzip."""
    digest = hashlib.blake2b(identity(name).encode(), digest_size=16).hexdigest()

    def build(folder: Path) -> None:
        packed = Path(name)
        if is_remote(name):
            packed = folder / "packed"
            read_whole(name, packed)
        _gunzip(packed, folder / "shard.tar", redacted(name))
        (folder / "packed").unlink(missing_ok=True)

    return str(build_once(cache_folder() / "unpacked" / digest, build) / "shard.tar")


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


def _index_one(with_crc: bool, work: Path, numbered: tuple[int, str]) -> Receipt:
    number, name = numbered
    found = scan_remote(name, with_crc) if is_remote(name) else scan_file(Path(name), with_crc)
    data = found.sidecar.to_bytes()
    write_atomically(work / f"{number:08d}.sidecar", data)
    size = size_of(name) if is_remote(name) else Path(name).stat().st_size
    return {
        "samples": len(found.sidecar),
        "bad_count": found.sidecar.bad,
        "bytes": size,
        "checksum": crc32(data),
        "extensions": dict(found.extensions),
        "bad": [[key, fault] for _, key, fault in found.bad] + [["", fault] for fault in found.faults],
        "kinds": [[list(kind), count, first] for kind, (count, first) in found.kinds.items()],
    }


def index_shards(
    names: Iterable[str | Path], folder: Path, with_crc: bool = False, processes: int | None = None
) -> tuple[Manifest, list[tuple[str, str, str]]]:
    """Index tars (paths or URLs) into ``folder``; returns the manifest and the bad samples (shard, key, fault).

    Shards inside ``folder`` are listed by relative name, others by absolute path or URL. Raises UserError when one
    is no tar or there is none with samples; no manifest is written then, and the scans done so far are kept for the
    next attempt. An archive that is empty is left out, and listed.
    """
    files = [_unpacked(name) if name.lower().endswith(GZIPPED) else name for name in map(str, names)]
    if not files:
        raise UserError(f"{folder}: no .tar files to index; give a folder of WebDataset shards")
    described = "\n".join([str(with_crc), *(identity(name) for name in files)])
    work = folder / ".index" / hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
    few = len(files) < 16  # a spawned process costs more than some small scans
    scan = partial(_index_one, with_crc, work)
    cores = 1 if few and processes is None else processes
    found = run_jobs(scan, list(enumerate(files)), "index", work / "receipts", cores, quiet=few)
    assert found is not None, "all parts ran here"
    root = folder.resolve()
    shards, bad, extensions = [], [], Counter[str]()
    sidecars, kinds = [], []
    for number, (name, receipt) in enumerate(zip(files, found, strict=True)):
        url = name if is_remote(name) else _relative(Path(name).resolve(), root)
        bad += [(url, key, fault) for key, fault in receipt["bad"]]
        if not receipt["samples"]:  # an empty archive among others is said, and left out
            continue
        sidecars.append(work / f"{number:08d}.sidecar")
        kinds.append((url, receipt["kinds"]))
        shards.append(
            Shard(url, receipt["samples"], receipt["bad_count"], receipt["bytes"], receipt["checksum"])
        )
        extensions.update(receipt["extensions"])
    if not shards:
        raise UserError(f"{files[0]}: not a usable tar ({bad[0][2]}); remove it or fetch it again")
    bad += find_incomplete(kinds)
    manifest = make_manifest(shards, tuple(sorted(extensions)))
    for number, sidecar in enumerate(sidecars):
        target = folder / manifest.sidecar_name(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar.replace(target)
    write_manifest(manifest, folder)
    shutil.rmtree(folder / ".index")
    return manifest, bad


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
