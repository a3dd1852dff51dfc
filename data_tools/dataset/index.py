"""Sidecars and a manifest for anyone's tars, scanned in parallel."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from data_tools.dataset.incomplete import find_incomplete
from data_tools.dataset.sources import describe_shard, identify
from data_tools.errors import UserError
from data_tools.formats.manifest import Manifest, Shard, make_manifest, write_manifest
from data_tools.formats.marks import MARKS_FILES
from data_tools.formats.scan import scan_file, scan_remote
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once
from data_tools.storage.checksum import crc32, digest_text
from data_tools.storage.location import location_of, name_ends
from data_tools.storage.objects import Retry, is_remote, read_whole, redacted
from data_tools.storage.segments import FetchOptions
from data_tools.storage.staging import INDEXING, Staging

MAX_UNPACKED_RATIO = 200  # gzip of real data stays under 20; beyond this it is a bomb


def unpack(name: str, fetching: FetchOptions) -> str:
    """A gzipped tar, unpacked once into the cache, since samples cannot be read from the middle of gzip."""
    if not name_ends(name, (".gz", ".tgz")):
        return name
    digest = digest_text(identify([name], fetching.retry)[0])

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
    said = describe_shard(name, retry) if is_remote(name) else None
    found = scan_remote(name, with_crc, retry) if said else scan_file(Path(name), with_crc)
    data = found.sidecar.to_bytes()
    write_atomically(work / f"{number:08d}.sidecar", data)
    return {
        "samples": len(found.sidecar),
        "bad_count": found.sidecar.bad,
        "bytes": said.size if said else Path(name).stat().st_size,
        "version": said.version if said else "",
        "checksum": crc32(data),
        "extensions": dict(found.extensions),
        "bad": [[key, fault] for _, key, fault in found.bad] + [["", fault] for fault in found.faults],
        "kinds": [[list(kind), count, first] for kind, (count, first) in found.kinds.items()],
    }


def index_shards(
    names: Iterable[str | Path], folder: Path, with_crc: bool = True, processes: int | None = None,
    base: str = "", fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> tuple[Manifest, list[tuple[str, str, str]]]:  # fmt: skip
    """Index tars (paths or URLs) into ``folder``; returns the manifest and the bad samples (shard, key, fault).

    Shards inside ``folder``, or below the URL ``base``, are listed by relative name, others by absolute path or URL,
    without what is secret in it. Without CRC, the fingerprint is one of the layout only. Stopped, it goes on with the
    scans that are done. An archive that is empty is left out, and listed. Of several processes that index into one
    folder, each waits for the one before.

    Raises:
        UserError: one is no tar, or there is none with samples; no manifest is written then.
    """
    files = [unpack(name, fetching) for name in map(str, names)]
    if not files:
        raise UserError(f"{folder}: no .tar files to index; give a folder of WebDataset shards")
    described = "\n".join([str(with_crc), *identify(files, fetching.retry)])
    work = Staging(folder, INDEXING, digest_text(described, 8))
    with work.alone():
        return _index_alone(files, work, with_crc, processes, base, fetching.retry)


def _index_alone(
    files: list[str], work: Staging, with_crc: bool, processes: int | None, base: str, retry: Retry
) -> tuple[Manifest, list[tuple[str, str, str]]]:
    folder = work.out
    few = len(files) < 16  # a spawned process costs more than some small scans
    scan = partial(_index_one, with_crc, work.folder, retry)
    cores = 1 if few and processes is None else processes
    found = run_jobs(scan, list(enumerate(files)), "index", work.receipts, cores, quiet=few)
    assert found is not None, "all parts ran here"
    root = folder.resolve()
    shards, bad, extensions = [], [], Counter[str]()
    sidecars, kinds = [], []
    for number, (name, receipt) in enumerate(zip(files, found, strict=True)):
        url = _relative_url(name, base) if is_remote(name) else _relative(Path(name).resolve(), root)
        bad += [(url, key, fault) for key, fault in receipt["bad"]]
        if not receipt["samples"]:  # an empty archive among others is said, and left out
            continue
        sidecars.append(f"{number:08d}.sidecar")
        kinds.append((url, receipt["kinds"]))
        counted = (receipt[column] for column in ("samples", "bad_count", "bytes", "checksum", "version"))
        shards.append(Shard(url, *counted))
        extensions.update(receipt["extensions"])
    if not shards:
        raise UserError(f"{redacted(files[0])}: not a usable tar ({bad[0][2]}); remove it or fetch it again")
    bad += find_incomplete(kinds)
    manifest = make_manifest(shards, tuple(sorted(extensions)), has_crc=with_crc)
    for number, sidecar in enumerate(sidecars):
        work.publish(sidecar, folder / manifest.sidecar_name(number))
    write_manifest(manifest, folder)
    for marks in folder.glob(MARKS_FILES):  # of samples as they were before
        marks.unlink(missing_ok=True)
    work.remove()
    return manifest, bad


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _relative_url(url: str, base: str) -> str:
    """The URL as a manifest at ``base`` names it."""
    place = location_of(url)
    return place.removeprefix(f"{base}/") if base and place.startswith(f"{base}/") else place
