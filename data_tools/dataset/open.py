"""Whatever a user names, a folder, a URL, tars, `sample:digits`, as a data set."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.expand import expand
from data_tools.dataset.index import index_shards, unpack
from data_tools.dataset.join import absolute_places, keep_joined
from data_tools.dataset.reader import REFUSED, Store
from data_tools.dataset.remote_tokenizer import copy_tokenizer
from data_tools.dataset.shard_files import TARS
from data_tools.dataset.sources import find_tars, identify
from data_tools.decode.kinds import PICKLE_EXTENSIONS
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest, read_manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once, cache_errors, make_shared_folder, share
from data_tools.storage.checksum import digest_text
from data_tools.storage.location import location_of, name_ends
from data_tools.storage.objects import MissingError, RefusedError, is_remote, read_all, redacted
from data_tools.storage.segments import FetchOptions
from data_tools.storage.urls import join_url, parent_url

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A data set: the folder of its manifest on this machine, its base URL if it is remote, how shards are reached."""

    folder: Path
    base: str = ""
    sources: Sequence[str] = ()

    def read_manifest(self) -> Manifest:
        """Raises UserError where it is none."""
        place = redacted(join_url(self.base, MANIFEST_NAME)) if self.base else ""
        return read_manifest(self.folder / MANIFEST_NAME, place)


def open_dataset(
    source: str | Path | Sequence[str | Path],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 - frozen
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Dataset:
    """Open whatever a user names: ``sample:digits``, a folder or its URL, a manifest, a tar, or several of them.

    Several are a list, braces (``{000000..000099}.tar``) or a pattern (``s3://bucket/*.tar``); data sets with manifests
    become one, in the order in which they are named. Tars without a manifest, a prefix of an object store included, are
    indexed into the cache: once, while others that ask meanwhile wait; again when one of them was replaced.

    Raises:
        UserError: there is nothing to open, a folder that is packed in part only, or what cannot be one data set.
    """
    found = find_dataset(source, fetching)
    manifest = found.read_manifest()
    refused = sorted(e for e in manifest.extensions if e.rsplit(".", 1)[-1] in PICKLE_EXTENSIONS)
    if refused:
        raise UserError(
            f"{shown(source)}: members .{', .'.join(refused)} are pickles, which can run code; repack the data "
            "without them"
        )
    if not int(manifest.counts.sum()):
        raise UserError(
            f"{shown(source)}: holds no usable samples; run `python -m data_tools verify` to see why"
        )
    if manifest.has_crc is False:
        warn_once(
            f"{shown(source)}: indexed without CRC: its identity ({manifest.fingerprint}) is of the layout only, other "
            "bytes of the same sizes go unnoticed; `python -m data_tools index` takes the CRC"
        )
    if manifest.marks is not None:
        warn_once(
            f"{shown(source)}: {manifest.marks.samples} samples are marked by verify; others stand in for them"
        )
    return _open(found, manifest, options, fetching)


def open_marked(
    source: str | Path,
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Dataset:
    """Open a folder or URL with a manifest for ``verify``: whatever is usable of it, and marked so far.

    Tars that a URL names are indexed into the cache, where their marks are kept, too.
    """
    text = str(source)
    if text.startswith("sample:") or (is_remote(text) and is_tar(text)):
        found = find_dataset(text, fetching)
    elif not is_remote(text):
        found = Found(Path(text))
    elif (there := _remote_manifest(text, fetching)) is not None:
        found = there
    else:
        raise UserError(f"{redacted(text)}: no manifest there; write one with `python -m data_tools index`")
    manifest = dataclasses.replace(found.read_manifest(), marks=None)
    return _open(found, manifest, DecodeOptions(), fetching)


def _open(found: Found, manifest: Manifest, options: DecodeOptions, fetching: FetchOptions) -> Dataset:
    return Dataset(Store(manifest, found.folder, found.base, fetching, found.sources), options)


@lru_cache(maxsize=256)
def warn_once(text: str) -> None:
    """Warn of a data set at the first time that it is opened, and not in workers, which open what their parent has."""
    if parent_process() is None:
        log.warning(text)


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
    for part in parts:
        refuse_twice(part)
    if len(parts) == 1:
        return find_part(parts[0], shown(source), fetching)
    stores = []
    for part in parts:
        found = find_part(part, shown(part), fetching)
        manifest = found.read_manifest()
        stores.append(Store(manifest, found.folder, found.base, fetching, found.sources))
    places = [place for store in stores for place in absolute_places(store)]
    return Found(keep_joined(stores, fetching.cache), sources=places)


def refuse_twice(tars: Sequence[str]) -> None:
    """Raise UserError where one tar is named twice: its samples would count twice."""
    places = [location_of(name) if is_remote(name) else os.path.realpath(name) for name in tars]
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: is named twice, perhaps by a link; name it once")


def part_sources(names: Sequence[str]) -> list[list[str]]:
    """Names in a row that are tars are one part, every other name is one."""
    parts: list[list[str]] = []
    for name in names:
        if parts and is_tar(name) and is_tar(parts[-1][0]):
            parts[-1].append(name)
        else:
            parts.append([name])
    return parts


def is_tar(name: str) -> bool:
    """Whether it is a tar, or a file that is taken for one; no folder, manifest or sample data."""
    if name_ends(name, TARS):
        return is_remote(name) or not Path(name).expanduser().is_dir()
    return not is_remote(name) and Path(name).is_file() and Path(name).name != MANIFEST_NAME


def find_part(part: Sequence[str], asked: str, fetching: FetchOptions) -> Found:
    """Where the manifest is of tars, or of one folder, manifest, sample or URL."""
    text = part[0]
    if text.startswith("sample:"):
        from data_tools.samples import sample_folder

        return Found(sample_folder(text.removeprefix("sample:")))
    if is_tar(text):
        return _indexed(part, asked, fetching)
    if is_remote(text):
        return _remote_manifest(text, fetching) or _listed(text, fetching)
    path = Path(text).expanduser()
    if path.name == MANIFEST_NAME:
        return Found(path.parent)
    if (path / MANIFEST_NAME).is_file():
        return Found(path)
    return _indexed(find_tars(text), asked, fetching)


NOTHING = "{}: no such data set; give a folder with manifest.json or .tar files, a glob, or sample:NAME"


def _remote_manifest(url: str, fetching: FetchOptions) -> Found | None:
    """Copy a remote manifest here; it is small, and may have changed since the last time. None where there is none."""
    base = parent_url(url, MANIFEST_NAME)
    folder = fetching.cache / "remote" / digest_text(location_of(base))
    try:
        data = read_all(join_url(base, MANIFEST_NAME), fetching.retry)
    except RefusedError as error:
        raise UserError(f"{error}; {REFUSED}") from None
    except MissingError:
        return None
    kept = folder / MANIFEST_NAME
    anew = not kept.exists() or kept.read_bytes() != data
    with cache_errors(folder):
        make_shared_folder(folder)
        write_atomically(kept, data)
        share(kept)
    found = Found(folder, base)
    copy_tokenizer(found.read_manifest(), base, folder, fetching.retry, anew)
    return found


def _listed(url: str, fetching: FetchOptions) -> Found:
    """The tars of a prefix that has no manifest."""
    try:
        tars, reason = find_tars(url, retry=fetching.retry), "no tars either"
    except UserError as error:  # most web servers list nothing
        tars, reason = [], str(error)
    if not tars:
        raise UserError(
            f"{redacted(url)}: no manifest there; write one with `python -m data_tools index`, or name the tars "
            f"({reason})"
        )
    return _indexed(tars, redacted(url), fetching)


def _indexed(tars: Sequence[str], asked: str, fetching: FetchOptions) -> Found:
    """Index tars into the cache, unless that was done for these very files before; gzipped ones are unpacked."""
    if not tars:
        raise UserError(NOTHING.format(asked))
    described = "\0".join(["crc", *identify(tars, fetching.retry)])
    digest = digest_text(described)

    def build(folder: Path) -> None:
        log.info(
            "%s: no manifest; indexing %d tars (`python -m data_tools index` keeps it)", asked, len(tars)
        )
        _, bad = index_shards(tars, folder, fetching=fetching)
        for shard, key, fault in bad[:20]:
            log.warning("%s: %s: %s", shard, key or "shard", fault)

    folder = build_once(fetching.cache / f"index-v{MANIFEST_VERSION}" / digest, build)
    files = [unpack(name, fetching) for name in tars]
    listed = set(read_manifest(folder / MANIFEST_NAME).urls)  # an empty tar is left out
    named = [name if is_remote(name) else str(Path(name).resolve()) for name in files]
    return Found(folder, sources=[name for name in named if location_of(name) in listed])
