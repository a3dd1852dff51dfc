"""Manifests over shards that lie elsewhere: a selection of their samples, or all of them; nothing is copied."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.sources import refuse_secrets
from data_tools.errors import UserError
from data_tools.formats.manifest import Manifest, write_manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import crc32
from data_tools.storage.objects import is_remote


def refuse_full(folder: Path) -> None:
    """Raise UserError where a new data set's folder holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose another folder")


def refuse_signed(dataset: Dataset) -> None:
    """Raise UserError where no manifest can be written over a data set's shards: a secret stands in their URLs."""
    for shard in range(len(dataset.manifest.urls)):
        refuse_secrets(dataset.location(shard))


@contextmanager
def whole_or_none(*folders: Path) -> Iterator[None]:
    """Within it new data sets are written into these folders, which are gone if that fails: a full disk, Ctrl-C."""
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def write_selection(
    dataset: Dataset, indices: NDArray[np.int64], folder: Path, how: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest and sidecars of some samples of a whole data set, (samples,), into a folder.

    They keep the order of their shards. ``how`` they were chosen is kept in the manifest, with the fingerprint of the
    data set that they are of.

    Raises:
        UserError: a shard is reached by a URL with a password or signature.
    """
    source, home = dataset.manifest, dataset.folder
    assert home is not None
    about = copy_beside(home, source.about, folder)
    if how is not None:
        about["chosen"] = {"from": source.fingerprint, **how}
    manifest = dataclasses.replace(source, urls=reach_shards(dataset, folder), about=about, marks=None)
    samples, checksums = [], []
    chosen = np.zeros(len(dataset), dtype=np.bool_)
    chosen[indices] = True
    start = 0
    for shard, count in enumerate(source.counts.tolist()):
        mine = chosen[start : start + count]
        start += count
        data = dataset.valid_sidecar(shard).take(mine).to_bytes()
        samples.append(int(mine.sum()))
        checksums.append(crc32(data))
        write_atomically(folder / manifest.sidecar_name(shard), data)
    manifest = dataclasses.replace(
        manifest,
        samples=np.array(samples, dtype=np.int64),
        bad=np.zeros(len(samples), dtype=np.int64),
        checksums=np.array(checksums, dtype=np.uint32),
    )
    write_manifest(manifest, folder)
    return manifest


def copy_index(dataset: Dataset, folder: Path) -> Manifest:
    """Write the same manifest and sidecars into a folder, from where they reach the same shards; without marks.

    Raises:
        UserError: a shard is reached by a URL with a password or signature.
    """
    home = dataset.folder
    assert home is not None
    about = copy_beside(home, dataset.manifest.about, folder)
    manifest = dataclasses.replace(
        dataset.manifest, urls=reach_shards(dataset, folder), about=about, marks=None
    )
    for shard in range(len(manifest.urls)):
        write_atomically(folder / manifest.sidecar_name(shard), dataset.sidecar(shard).to_bytes())
    write_manifest(manifest, folder)
    return manifest


def reach_shards(dataset: Dataset, folder: Path) -> list[str]:
    """How each shard is reached from a folder of this machine: by URL, by absolute path, or by one from there.

    Raises:
        UserError: a shard is reached by a URL with a password or signature.
    """
    refuse_signed(dataset)
    urls = []
    for shard, url in enumerate(dataset.manifest.urls):
        place = dataset.location(shard)
        urls.append(place if is_remote(place) or Path(url).is_absolute() else os.path.relpath(place, folder))
    return urls


def copy_beside(home: Path, about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Carry over the licence and tokenizer of a data set at ``home``; returns ``about`` as it holds in ``folder``."""
    named = about.get("tokenizer", "tokenizer")
    # An absolute one is of several data sets that are one. Beyond a manifest's own folder nothing is written for it.
    elsewhere = Path(named).is_absolute() or ".." in Path(named).parts
    beside = "tokenizer" if elsewhere else named
    files = [(home / "LICENCE.txt", "LICENCE.txt")]
    files += [(path, f"{beside}/{path.name}") for path in sorted((home / named).glob("*.json"))]
    for path, name in files:
        if path.is_file() and path.resolve() != (folder / name).resolve():
            write_atomically(folder / name, path.read_bytes())
    return {**about, "tokenizer": beside} if "tokenizer" in about else dict(about)
