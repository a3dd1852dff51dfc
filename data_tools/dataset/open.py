"""Whatever a user names, a folder, a URL, tars, `sample:digits`, as a data set."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.expand import TARS, expand
from data_tools.dataset.index import identity, index_shards, unpack
from data_tools.dataset.join import absolute_places, keep_joined
from data_tools.dataset.reader import REFUSED, Store
from data_tools.decode.kinds import PICKLE_EXTENSIONS
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_NAME, MANIFEST_VERSION, read_manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once, cache_errors, make_shared_folder, share
from data_tools.storage.objects import MissingError, RefusedError, is_remote, read_all, redacted
from data_tools.storage.segments import FetchOptions
from data_tools.storage.urls import join_url, name_of, parent_url

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A data set: the folder of its manifest on this machine, its base URL if it is remote, how shards are reached."""

    folder: Path
    base: str = ""
    sources: Sequence[str] = ()


def open_dataset(
    source: str | Path | Sequence[str | Path],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 - frozen
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Dataset:
    """Open whatever a user names: ``sample:digits``, a folder or its URL, a manifest, a tar, or several of them.

    Several are a list, braces (``{000000..000099}.tar``) or a pattern (``s3://bucket/*.tar``). Tars without a manifest
    are indexed once into the cache; data sets with manifests become one, in the order in which they are named.

    Raises:
        UserError: there is nothing to open, or what is named cannot be one data set.
    """
    store = open_store(source, fetching)
    manifest = store.manifest
    refused = sorted(e for e in manifest.extensions if e.rsplit(".", 1)[-1] in PICKLE_EXTENSIONS)
    if refused:
        raise UserError(
            f"{shown(source)}: members .{', .'.join(refused)} are pickles, which can run code; repack the data without "
            "them"
        )
    if not int(manifest.counts.sum()):
        raise UserError(
            f"{shown(source)}: holds no usable samples; run `python -m data_tools verify` to see why"
        )
    return Dataset(store, options)


def open_marked(folder: Path) -> Dataset:
    """A folder with a manifest, even when all of its samples are marked bad: for ``verify``."""
    return Dataset(Store(read_manifest(folder / MANIFEST_NAME), folder, "", FetchOptions()), DecodeOptions())


def open_store(source: str | Path | Sequence[str | Path], fetching: FetchOptions) -> Store:
    """The shards and sidecars of whatever was asked for, usable or not."""
    found = find_dataset(source, fetching)
    return Store(
        read_manifest(found.folder / MANIFEST_NAME), found.folder, found.base, fetching, found.sources
    )


def shown(source: str | Path | Sequence[str | Path]) -> str:
    """A source as messages name it: without secrets, a list by its first."""
    if isinstance(source, str | Path):
        return redacted(str(source))
    return f"{redacted(str(source[0]))} …" if source else "an empty list"


def find_dataset(source: str | Path | Sequence[str | Path], fetching: FetchOptions) -> Found:
    """Where the manifest is of whatever was asked for; it is fetched, made, or joined from several, if need be."""
    for name in [source] if isinstance(source, str | Path) else source:
        if str(name).startswith("pipe:"):
            raise UserError(f"{name}: pipe: URLs run a shell and are refused; download the shards first")
    parts = part_sources(expand(source, fetching.retry))
    if not parts:
        raise UserError(NOTHING.format(shown(source)))
    if len(parts) == 1:
        return find_part(parts[0], shown(source), fetching)
    stores = [open_store(part if is_tars(part) else part[0], fetching) for part in parts]
    return Found(
        keep_joined(stores, fetching.cache),
        "",
        [place for store in stores for place in absolute_places(store)],
    )


def part_sources(names: Sequence[str]) -> list[list[str]]:
    """Names in a row that are tars are one part, every other name is one."""
    parts: list[list[str]] = []
    for name in names:
        if parts and is_tars([name]) and is_tars(parts[-1]):
            parts[-1].append(name)
        else:
            parts.append([name])
    return parts


def is_tars(part: Sequence[str]) -> bool:
    """Whether a part is tars, and no folder, manifest or sample data."""
    first = part[0]
    if name_of(first).endswith(TARS):
        return True
    return not is_remote(first) and Path(first).is_file() and Path(first).name != MANIFEST_NAME


def find_part(part: Sequence[str], asked: str, fetching: FetchOptions) -> Found:
    """Where the manifest is of tars, or of one folder, manifest, sample or URL."""
    text = part[0]
    if text.startswith("sample:"):
        from data_tools.samples import sample_folder

        return Found(sample_folder(text.removeprefix("sample:")))
    if is_tars(part):
        return indexed_folder(part, asked, fetching)
    if is_remote(text):
        return remote_folder(text, fetching)
    path = Path(text).expanduser()
    if path.name == MANIFEST_NAME:
        return Found(path.parent)
    if (path / MANIFEST_NAME).is_file():
        return Found(path)
    tars = sorted(str(file) for file in path.rglob("*") if file.name.endswith(TARS))
    return indexed_folder(tars, asked, fetching)


NOTHING = "{}: no such data set; give a folder with manifest.json or .tar files, a glob, or sample:NAME"


def remote_folder(url: str, fetching: FetchOptions) -> Found:
    """Copy a remote manifest here; it is small, and may have changed since the last time."""
    base = parent_url(url, MANIFEST_NAME)
    digest = hashlib.blake2b(redacted(base).encode(), digest_size=16).hexdigest()
    folder = fetching.cache / "remote" / digest
    try:
        data = read_all(join_url(base, MANIFEST_NAME), fetching.retry)
    except RefusedError as error:
        raise UserError(f"{error}; {REFUSED}") from None
    except MissingError as error:
        raise UserError(f"{error}: no manifest there; write one with `python -m data_tools index`") from None
    with cache_errors(folder):
        make_shared_folder(folder)
        write_atomically(folder / MANIFEST_NAME, data)
        share(folder / MANIFEST_NAME)
    return Found(folder, base)


def indexed_folder(tars: Sequence[str], asked: str, fetching: FetchOptions) -> Found:
    """Index tars into the cache, unless that was done for these very files before; gzipped ones are unpacked."""
    if not tars:
        raise UserError(NOTHING.format(asked))
    digest = hashlib.blake2b(digest_size=16)
    for name in tars:
        digest.update(f"{identity(name, fetching.retry)}\0".encode())

    def build(folder: Path) -> None:
        log.info(
            "%s: no manifest; indexing %d tars (`python -m data_tools index` keeps it)", asked, len(tars)
        )
        _, bad = index_shards(tars, folder, fetching=fetching)
        for shard, key, fault in bad[:20]:
            log.warning("%s: %s: %s", shard, key or "shard", fault)

    folder = build_once(fetching.cache / f"index-v{MANIFEST_VERSION}" / digest.hexdigest(), build)
    return Found(folder, "", [unpack(name, fetching) for name in tars])
