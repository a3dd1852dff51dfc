"""Reads everything once, marks bad samples in the sidecars, and names them."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path

import numpy as np

from data_tools.dataset.dataset import Dataset
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import Manifest, write_manifest
from data_tools.formats.sidecar import Sidecar, read_sidecar
from data_tools.jobs import Receipt, run_jobs
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import crc32

Bad = tuple[str, str, str]  # shard, sample, what is wrong


def verify(dataset: Dataset, decode: bool = True, processes: int | None = None) -> tuple[Manifest, list[Bad]]:
    """Check every sample of the manifest (those marked bad before included) and mark what is bad now.

    The sidecars get the CRC of each sample if they had none. Stopped, it goes on where it was. Returns the new
    manifest, written already, and all bad samples.
    """
    folder, manifest = dataset.folder, dataset.manifest
    if folder is None or not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder}: is not writable, so bad samples cannot be marked; copy the manifest and sidecars"
        )
    receipts = folder / ".verify" / f"{manifest.fingerprint}{'' if decode else '-bytes'}"
    work = partial(_verify_shard, manifest, folder, decode, receipts)
    found = run_jobs(work, range(len(manifest.urls)), "verify", receipts / "receipts", processes)
    assert found is not None, "all parts ran here"
    for shard in range(len(manifest.urls)):
        marked = receipts / f"{shard:08d}.sidecar"
        if marked.exists():
            marked.replace(folder / manifest.sidecar_name(shard))
    new = dataclasses.replace(
        manifest,
        bad=np.array([r["bad_count"] for r in found], dtype=np.int64),
        checksums=np.array([r["checksum"] for r in found], dtype=np.uint32),
    )
    write_manifest(new, folder)
    for path in sorted(receipts.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    receipts.parent.rmdir()
    return new, [(manifest.urls[i], name, reason) for i, r in enumerate(found) for name, reason in r["bad"]]


def _verify_shard(manifest: Manifest, folder: Path, decode: bool, marked: Path, shard: int) -> Receipt:
    sidecar = read_sidecar(folder / manifest.sidecar_name(shard), check=True)
    valid = np.ones(len(sidecar), dtype=np.uint8)
    crc = np.zeros(len(sidecar), dtype=np.uint32)
    bad: list[tuple[str, str]] = []
    total = 0
    path = folder / manifest.urls[shard]
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        missing = [(f"#{row}", f"the shard cannot be read ({error.strerror})") for row in range(len(sidecar))]
        return _receipt(marked, shard, dataclasses.replace(sidecar, valid=valid * 0), missing, 0)
    try:
        for row in range(len(sidecar)):
            size = int(sidecar.size[row])
            raw = os.pread(handle, size, int(sidecar.offset[row]))
            total += len(raw)
            name, reason = _check(
                raw, size, None if sidecar.crc is None else int(sidecar.crc[row]), row, decode
            )
            crc[row] = crc32(raw) if sidecar.crc is None else sidecar.crc[row]
            if reason or not (sidecar.valid[row] or sidecar.crc is not None):
                valid[row] = 0
                bad.append((name, reason or "marked bad when it was indexed"))
    finally:
        os.close(handle)
    return _receipt(marked, shard, dataclasses.replace(sidecar, valid=valid, crc=crc), bad, total)


def _check(raw: bytes, size: int, crc: int | None, row: int, decode: bool) -> tuple[str, str]:
    """(name, what is wrong or "") of one sample."""
    if len(raw) != size:
        return f"#{row}", f"cut: {len(raw)} of {size} bytes are there"
    try:
        key, members = tar.sample_members(raw)
    except tar.TarError as error:
        return f"#{row}", str(error)
    if crc is not None and crc32(raw) != crc:
        return key, "checksum does not match"
    try:
        decode_sample(key, members, DecodeOptions(raw=not decode))
    except DecodeError as error:
        return key, str(error)
    return key, ""


def _receipt(marked: Path, shard: int, sidecar: Sidecar, bad: list[tuple[str, str]], total: int) -> Receipt:
    data = sidecar.to_bytes()
    write_atomically(marked / f"{shard:08d}.sidecar", data)
    return {
        "bad": bad,
        "bad_count": sidecar.bad,
        "checksum": crc32(data),
        "samples": len(sidecar),
        "bytes": total,
    }
