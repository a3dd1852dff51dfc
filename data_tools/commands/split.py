"""Hold-out by a hash of the key: the same sample falls on the same side in every version of the data."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.dataset import Dataset
from data_tools.errors import UserError
from data_tools.formats.manifest import Manifest, write_manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import crc32


def held_out(key: str, fraction: float, salt: str = "") -> bool:
    """Whether a key belongs to the held-out ``fraction``."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "little") < fraction * 2**64


def split(dataset: Dataset, fraction: float, train: Path, test: Path, salt: str = "") -> tuple[int, int]:
    """Write two manifests over the same shards, nothing copied: (samples in train, samples in test)."""
    if not 0 < fraction < 1:
        raise UserError(f"--fraction {fraction}: must lie between 0 and 1")
    for folder in (train, test):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; choose another folder")
    out = np.array([held_out(key, fraction, salt) for key in dataset.keys()])  # noqa: SIM118
    if out.all() or not out.any():
        raise UserError(
            f"--fraction {fraction}: leaves one side empty with {len(out)} samples; choose another"
        )
    for folder, chosen in ((train, ~out), (test, out)):
        _write_selection(dataset, chosen, folder)
    return int((~out).sum()), int(out.sum())


def _write_selection(dataset: Dataset, chosen: NDArray[np.bool_], folder: Path) -> None:
    source, home = dataset.manifest, dataset.folder
    assert home is not None
    urls = [_reach(home, url, folder) for url in source.urls]
    manifest = dataclasses.replace(source, urls=urls, about=dict(source.about))
    samples, checksums = [], []
    start = 0
    for shard, count in enumerate(source.counts.tolist()):
        mine = chosen[start : start + count]
        start += count
        data = dataset.valid_sidecar(shard).take(mine).to_bytes()
        samples.append(int(mine.sum()))
        checksums.append(crc32(data))
        write_atomically(folder / manifest.sidecar_name(shard), data)
    _copy_beside(home, folder, source)
    write_manifest(
        dataclasses.replace(
            manifest,
            samples=np.array(samples, dtype=np.int64),
            bad=np.zeros(len(samples), dtype=np.int64),
            checksums=np.array(checksums, dtype=np.uint32),
        ),
        folder,
    )


def _reach(home: Path, url: str, folder: Path) -> str:
    """How the shard is reached from the new folder."""
    return url if "://" in url or Path(url).is_absolute() else os.path.relpath(home / url, folder)


def _copy_beside(home: Path, folder: Path, manifest: Manifest) -> None:
    """Carry over the tokenizer and the licence."""
    tokenizer = home / manifest.about.get("tokenizer", "tokenizer")
    for path in [home / "LICENCE.txt", *sorted(tokenizer.glob("*.json"))]:
        if path.is_file():
            write_atomically(folder / path.relative_to(home), path.read_bytes())
