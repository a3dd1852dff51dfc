"""Several data sets as one, and new shards for one that is there: manifests are written, shards stay as they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.join import join_manifests, name_of, write_joined
from data_tools.dataset.open import open_dataset
from data_tools.dataset.selection import copy_beside, reach_shards, refuse_full, whole_or_none
from data_tools.dataset.sources import find_tars
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_NAME, Manifest, read_manifest
from data_tools.storage.locks import locked
from data_tools.storage.segments import FetchOptions

_LOCK = ".append.lock"


def merge(datasets: Sequence[Dataset], folder: Path) -> Manifest:
    """Write one manifest over the shards of whole data sets, in their order, into a new folder.

    Raises:
        UserError: their samples have other fields, only some have lengths or class names, their classes or tokenizers
            differ, a shard stands in two of them, or the folder is not empty.
    """
    refuse_full(folder)
    with whole_or_none(folder):
        return _write_merged(datasets, folder)


def append(
    folder: Path,
    sources: Sequence[str],
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> tuple[Manifest, int]:
    """Add shards to the data set of a local folder, behind those that it has; what is there is not read again.

    The fingerprint changes: a run over the data set of before does not go on with this one.

    Args:
        sources: data sets, tars among them; none of them: the tars in the folder that its manifest does not name.
        fetching: how those that lie elsewhere are read.
    Returns:
        The manifest, and how many shards are new.
    Raises:
        UserError: nothing is new, or it does not go together: see `merge`.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(
            f"{folder}: has no manifest to append to; write one with `python -m data_tools index`"
        )
    with locked(folder / _LOCK):
        before = read_manifest(folder / MANIFEST_NAME)
        known = {os.path.normpath(folder / url) for url in before.urls}
        tars = [tar for tar in find_tars(str(folder), (".tar",)) if os.path.normpath(tar) not in known]
        if not sources and not tars:
            raise UserError(f"{folder}: every .tar in it stands in its manifest; name what is to be added")
        named: Sequence[str | Sequence[str]] = sources or [tars]
        new = [open_dataset(source, fetching=fetching) for source in named]
        manifest = _write_merged([open_dataset(folder, fetching=fetching), *new], folder)
        return manifest, len(manifest.urls) - len(before.urls)


def _write_merged(datasets: Sequence[Dataset], folder: Path) -> Manifest:
    _refuse_different(datasets)
    stores = [dataset.store for dataset in datasets]
    joined = join_manifests(stores)
    urls = [_name_within(url, folder) for dataset in datasets for url in reach_shards(dataset, folder)]
    manifest = dataclasses.replace(joined, urls=urls, about=copy_beside(folder, joined.about, folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_joined(manifest, stores, folder)
    return manifest


def _name_within(url: str, folder: Path) -> str:
    """A shard in the folder goes by its name there, also where it was indexed by its absolute path."""
    root = folder.resolve()
    return Path(url).relative_to(root).as_posix() if Path(url).is_relative_to(root) else url


def _refuse_different(datasets: Sequence[Dataset]) -> None:
    """Raise UserError where samples of one data set have what those of the first have not, or the other way round."""
    for other in datasets[1:]:
        _refuse_lacking(datasets[0], other)
        _refuse_lacking(other, datasets[0])


def _refuse_lacking(has: Dataset, lacks: Dataset) -> None:
    name, other = name_of(lacks.store), name_of(has.store)
    if more := sorted(set(has.fields) - set(lacks.fields)):
        raise UserError(
            f"{name}: its samples have no {', '.join(more)}, as those of {other} have; merge what is alike"
        )
    if has.manifest.has_length and not lacks.manifest.has_length:
        raise UserError(f"{name}: has no lengths in its sidecars, as {other} has; tokenize both alike")
    if "classes" in has.manifest.about and "classes" not in lacks.manifest.about:
        raise UserError(
            f"{name}: does not name its classes, as {other} does, so a label may mean two things; pack it with "
            f"--classes {other}"
        )
