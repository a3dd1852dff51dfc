"""Reads everything once, names bad samples and marks them, so that no run reads them again."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.incomplete import fields_of, fields_to_mark
from data_tools.dataset.selection import (
    copy_index,
    refuse_full,
    refuse_signed,
    whole_or_none,
    write_selection,
)
from data_tools.dataset.sources import identify
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import MANIFEST_NAME, Manifest, MarksSeal, read_manifest, write_manifest
from data_tools.formats.marks import MARKS_FILES, Mark, marks_to_bytes
from data_tools.formats.scan import read_in_windows
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import crc32, digest_text
from data_tools.storage.objects import (
    MissingError,
    NoRangesError,
    Retry,
    describe_object,
    is_remote,
    read_whole,
    redacted,
)
from data_tools.storage.staging import VERIFYING, Staging
from data_tools.storage.upload import upload

Bad = tuple[str, str, str]  # shard, sample, what is wrong
NOTHING_MARKED = "nothing is marked; what was read so far is kept, run `verify` again when the shard is back"


def verify(
    dataset: Dataset, decode: bool = True, processes: int | None = None, output: Path | None = None,
    exclude: Path | None = None,
) -> tuple[Manifest, list[Bad]]:  # fmt: skip
    """Read every sample of a data set; mark those that are bad, and take back marks of an earlier time.

    Marks are no part of the order: a run goes on after its data were verified, and skips what is marked. They come
    from bytes that were read alone, never from a shard that is away. A sample that lacks a field which all others have
    is bad, too. What indexing left out stays out. Stopped, it goes on where it was.

    Args:
        output: a folder of this machine for a manifest with the marks, where they cannot be written beside the data.
        exclude: a new folder for the manifest of the sound samples: the next data set, with its own fingerprint.
    Returns:
        The manifest, written already, and all bad samples, those included that indexing left out.
    Raises:
        UserError: a shard cannot be read, or the marks cannot be written.
    """
    if exclude is not None:
        refuse_full(exclude)
        refuse_signed(dataset)
    home = output or dataset.folder
    assert home is not None
    if output is None and not os.access(home, os.W_OK):
        raise UserError(
            f"{home}: is not writable, so bad samples cannot be marked; name another folder with --output"
        )
    work = Staging(home, VERIFYING, _name_work(dataset, decode))
    with work.alone():
        return _verify_alone(dataset, work, decode, processes, output, exclude)


def _verify_alone(
    dataset: Dataset,
    work: Staging,
    decode: bool,
    processes: int | None,
    output: Path | None,
    exclude: Path | None,
) -> tuple[Manifest, list[Bad]]:
    if output is not None:
        _refuse_other_data(dataset, output)
        copy_index(dataset, output)
    shards = range(len(dataset.manifest.urls))
    found = run_jobs(partial(_verify_shard, dataset, decode), shards, "verify", work.receipts, processes)
    assert found is not None, "all parts ran here"
    urls = dataset.manifest.urls
    needed = fields_to_mark(*_count_lacking(found))
    marks = [
        Mark(shard, row, urls[shard], name, reason)
        for shard, receipt in enumerate(found)
        for row, name, reason in [*receipt["bad"], *_incomplete(receipt, needed)]
    ]
    manifest = _write_marks(dataset, marks, work.out, "" if output else dataset.base)
    if exclude is not None:
        sound = np.setdiff1d(np.arange(len(dataset)), dataset.indices_of(marks))
        with whole_or_none(exclude):
            manifest = write_selection(dataset, sound, exclude)
    work.remove()
    left_out = [
        (urls[shard], f"#{row}", "left out when it was indexed")
        for shard, receipt in enumerate(found)
        for row in receipt["left_out"]
    ]
    return manifest, [*((mark.url, mark.sample, mark.reason) for mark in marks), *left_out]


def _count_lacking(found: list[Receipt]) -> tuple[Counter[str], int]:
    """(samples that lack each field which others have, sound samples) of all shards."""
    lacking = Counter(name for receipt in found for *_, fields in receipt["lacking"] for name in fields)
    return lacking, sum(receipt["sound"] for receipt in found)


def _incomplete(receipt: Receipt, fields: frozenset[str]) -> Iterator[tuple[int, str, str]]:
    """(row, key, what is wrong) of a shard's samples that lack one of the fields that all others have."""
    for row, key, lacking in receipt["lacking"]:
        if missing := sorted(fields.intersection(lacking)):
            yield row, key, f"incomplete: has no {' and no '.join(missing)}, as all others have"


def _refuse_other_data(dataset: Dataset, output: Path) -> None:
    place = output / MANIFEST_NAME
    if place.exists() and read_manifest(place).fingerprint != dataset.manifest.fingerprint:
        raise UserError(f"--output {output}: holds another data set; choose another folder")


def _name_work(dataset: Dataset, decode: bool) -> str:
    """A name for what is read: a shard that was replaced or mended meanwhile is read again."""
    places = [dataset.location(shard) for shard in range(len(dataset.manifest.urls))]
    try:
        described = [dataset.fingerprint, str(decode), "fields", *identify(places, dataset.fetching.retry)]
    except UserError as error:
        raise UserError(f"{error}; nothing is marked") from None
    return digest_text("\0".join(described), 8)


def _write_marks(dataset: Dataset, marks: list[Mark], home: Path, base: str) -> Manifest:
    """Write the marks and then the manifest that names them, into a folder or below a URL, unless nothing changed."""
    data = marks_to_bytes(marks)
    seal = MarksSeal(len(marks), crc32(data)) if marks else None
    manifest = read_manifest(home / MANIFEST_NAME)  # with the marks of before
    if manifest.fingerprint != dataset.manifest.fingerprint:
        raise UserError(f"{home}: was indexed anew meanwhile; run `verify` again")
    if seal is None and manifest.marks is None:
        return manifest
    manifest = dataclasses.replace(manifest, marks=seal)
    if seal is not None:
        write_atomically(home / seal.name, data)
    if base:
        upload(home, [seal.name] if seal else [], base, dataset.fetching.retry)
    write_manifest(manifest, home)
    if base:
        upload(home, [MANIFEST_NAME], base, dataset.fetching.retry)
    for path in home.glob(MARKS_FILES):
        if seal is None or path.name != seal.name:
            path.unlink(missing_ok=True)
    return manifest


def _verify_shard(dataset: Dataset, decode: bool, shard: int) -> Receipt:
    sidecar = dataset.sidecar(shard)
    bad: list[tuple[int, str, str]] = []
    left_out: list[int] = []
    lacking: list[tuple[int, str, list[str]]] = []
    fields, sound, total = fields_of(dataset.manifest.extensions), 0, 0
    with _open_shard(dataset.location(shard), dataset.fetching.retry) as read:
        for row in range(len(sidecar)):
            if not sidecar.valid[row]:
                left_out.append(row)
                continue
            size = int(sidecar.size[row])
            raw = read(int(sidecar.offset[row]), size)
            total += len(raw)
            crc = None if sidecar.crc is None else int(sidecar.crc[row])
            name, reason, extensions = _check(raw, size, crc, row, decode)
            if reason:
                bad.append((row, name, reason))
                continue
            sound += 1
            if missing := fields - fields_of(extensions):
                lacking.append((row, name, sorted(missing)))
    return {
        "bad": bad, "left_out": left_out, "lacking": lacking, "sound": sound,
        "samples": len(sidecar), "bytes": total,
    }  # fmt: skip


@contextmanager
def _open_shard(place: str, retry: Retry) -> Iterator[tar.Read]:
    """What reads ranges of a shard: fewer bytes only where it ends. An error of the place is a UserError."""
    try:
        if not is_remote(place):
            with Path(place).open("rb") as file:
                yield lambda offset, size: os.pread(file.fileno(), size, offset)
            return
        size = describe_object(place, retry).size
        try:
            read = read_in_windows(place, size, retry)
            read(0, 1)
        except NoRangesError:
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder, "shard")
                read_whole(place, whole, retry)
                if whole.stat().st_size < size:
                    raise UserError(f"{redacted(place)}: the store sends less than it has") from None
                with _open_shard(str(whole), retry) as read:
                    yield read
            return
        yield read
    except UserError as error:
        raise UserError(f"{error}; {NOTHING_MARKED}") from None
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; {NOTHING_MARKED}") from None
    except OSError as error:
        raise UserError(f"{redacted(place)}: cannot be read ({error.strerror}); {NOTHING_MARKED}") from None


def _check(
    raw: bytes, size: int, crc: int | None, row: int, decode: bool
) -> tuple[str, str, tuple[str, ...]]:
    """(name, what is wrong or "", extensions of its members) of one sample."""
    if len(raw) != size:
        return f"#{row}", f"cut: {len(raw)} of {size} bytes are there", ()
    try:
        key, members = tar.sample_members(raw)
    except tar.TarError as error:
        return f"#{row}", str(error), ()
    if crc is not None and crc32(raw) != crc:
        return key, "checksum does not match", ()
    try:
        decode_sample(key, members, DecodeOptions(raw=not decode))
    except DecodeError as error:
        return key, str(error), ()
    return key, "", tuple(members)
