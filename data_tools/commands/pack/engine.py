"""Jobs of a source → shards, a manifest, and a list of what was skipped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import UserError
from data_tools.formats.manifest import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    make_manifest,
    read_manifest,
    write_manifest,
)
from data_tools.formats.shard_writer import ShardWriter
from data_tools.formats.tar import escape_key
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.staging import PACKING, Staging

SKIPPED_NAME = "skipped.jsonl"


class Packed(NamedTuple):
    """One sample to write: ``members`` by extension, ``length`` for the sidecar where the source knows it.

    ``note``: what the user is told of such samples, once and with their number.
    Dots in the last part of the key are written as ``%2E``: plain webdataset would end it at the first one.
    """

    key: str
    members: dict[str, bytes]
    length: int | None = None
    note: str = ""


class Skipped(NamedTuple):
    """An input that cannot be a sample, and why: `kind: details`, counted by kind in the summary."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What is to be packed: ``read`` turns a job into samples; jobs are JSON-able.

    It goes to other processes, so it is a top-level function, or a `partial` of one.
    """

    read: Callable[[Any], Iterator[Packed | Skipped]]
    jobs: Sequence[Any]
    about: dict[str, Any] = field(default_factory=dict)
    with_length: bool = False
    files: dict[str, Path] = field(default_factory=dict)  # put beside the manifest: name → where it is now
    stamp: str = ""  # of the input's sizes and times: changed input is not resumed
    skipped: Sequence[Skipped] = ()  # what is no input, as the plan found

    def digest(self, shard_bytes: int) -> str:
        """Names the work: resuming is right only for the same input, cut in the same way."""
        text = json.dumps(
            [self.about, self.with_length, self.stamp, shard_bytes, list(self.jobs)], sort_keys=True
        )
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def stamp(files: Iterable[Path]) -> str:
    """A digest of the sizes and modification times of the input."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue  # a dangling link: reading it says so
        digest.update(b"%d %d," % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@dataclass(frozen=True)
class Result:
    """The manifest (None while other parts are missing), and what is told of the input."""

    manifest: Manifest | None
    skipped: list[Skipped]
    notes: dict[str, int] = field(default_factory=dict)  # what is told of samples → of how many
    classes: dict[str, int] = field(default_factory=dict)  # class name → its samples


def pack(
    source: Source, out: Path, shard_bytes: int, processes: int | None = None, part: tuple[int, int] = (0, 1),
    executor: Executor | None = None,
) -> Result:  # fmt: skip
    """Pack a source into ``out``; goes on where an earlier run of the same work was stopped.

    Shards are written into ``out/.pack`` and get their final names, and the manifest, only when all are there. Tasks
    that end at once all finish the work; each writes the same.
    """
    work = Staging(out, PACKING, source.digest(shard_bytes))
    _check_target(out, work.folder)
    is_new = not out.exists()
    try:
        with work.alone("-{}-{}".format(*part)):
            _check_target(out, work.folder)  # another process may have done this very part meanwhile
            return _pack_alone(source, work, shard_bytes, processes, part, executor)
    except BaseException:
        if is_new:
            with suppress(OSError):  # there is something to go on from, or another command has written there
                out.rmdir()
        raise


def _pack_alone(
    source: Source, work: Staging, shard_bytes: int, processes: int | None, part: tuple[int, int],
    executor: Executor | None,
) -> Result:  # fmt: skip
    out = work.out
    work.folder.mkdir(parents=True, exist_ok=True)
    jobs = list(enumerate(source.jobs))
    do = partial(_pack_job, source.read, source.with_length, work.folder, shard_bytes)
    try:
        work.describe_parts(len(jobs), part[1])
        receipts = run_jobs(do, jobs, f"pack {out.name}", work.receipts, processes, part, executor)
    except BaseException:
        if part == (0, 1) and not any(work.receipts.glob("*")):  # nothing to resume from
            work.remove()
        raise
    if receipts is not None:
        return _finish(source, receipts, work)
    if (out / MANIFEST_NAME).exists():  # another task has finished meanwhile, and removed the receipts
        work.remove()
        return Result(read_manifest(out / MANIFEST_NAME), [])
    return Result(None, [])


def _check_target(out: Path, work: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to pack into")
    if (out / MANIFEST_NAME).exists():
        raise UserError(f"{out}: already holds a packed data set; choose another folder or remove it")
    others = [p.name for p in out.iterdir() if not p.name.startswith(PACKING)] if out.is_dir() else []
    if others and not work.is_dir():
        raise UserError(f"{out}: is not empty (it has {others[0]}); choose another folder")


def _pack_job(
    read: Callable[[Any], Iterator[Packed | Skipped]], with_length: bool, work: Path, shard_bytes: int,
    numbered_job: tuple[int, Any],
) -> Receipt:  # fmt: skip
    number, job = numbered_job
    skipped: list[Skipped] = []
    notes, labels = Counter[str](), Counter[str]()
    with ShardWriter(work, shard_bytes, with_length=with_length, prefix=f"{number:06d}-") as writer:
        for item in read(job):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                writer.write(escape_key(item.key), item.members, item.length)
                notes.update([item.note] if item.note else [])
                labels.update([item.members["cls"].decode()] if "cls" in item.members else [])
        shards = writer.close()
    return {
        "shards": [[s.url, s.samples, s.bytes, s.checksum] for s in shards],
        "extensions": dict(writer.extensions),
        "skipped": skipped,
        "notes": dict(notes),
        "labels": dict(labels),
        "samples": sum(s.samples for s in shards),
        "bytes": sum(s.bytes for s in shards),
    }


def _finish(source: Source, receipts: list[Receipt], work: Staging) -> Result:
    """Give the shards their final names, then write the list of skipped inputs, then the manifest."""
    out = work.out
    skipped = [*source.skipped, *(Skipped(*entry) for receipt in receipts for entry in receipt["skipped"])]
    shards: list[Shard] = []
    extensions = Counter[str]()
    for receipt in receipts:
        extensions.update(receipt["extensions"])
        for temporary, samples, size, checksum in receipt["shards"]:
            name = f"{len(shards):06d}.tar"
            for suffix in ("", ".sidecar"):
                work.publish(temporary + suffix, out / (name + suffix))
            shards.append(Shard(name, samples, 0, size, checksum))
    if not shards:
        work.remove()
        example = f", first {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{out}: nothing could be packed; {len(skipped)} inputs were unusable{example}")
    for name, path in source.files.items():
        write_atomically(out / name, path.read_bytes())
    if skipped:
        lines = "".join(json.dumps({"name": s.name, "reason": s.reason}) + "\n" for s in skipped)
        write_atomically(out / SKIPPED_NAME, lines.encode())
    manifest = make_manifest(
        shards, tuple(sorted(extensions)), source.with_length, source.about, has_crc=True
    )
    write_manifest(manifest, out)
    work.remove()
    notes, labels = Counter[str](), Counter[str]()
    for receipt in receipts:
        notes.update(receipt.get("notes", {}))  # a receipt of an earlier version has neither
        labels.update(receipt.get("labels", {}))
    names = source.about.get("classes", [])
    return Result(manifest, skipped, dict(notes), {name: labels[str(i)] for i, name in enumerate(names)})
