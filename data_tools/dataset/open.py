"""Whatever a user names, a folder, a URL, tars, `sample:digits`, as a data set."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.index import identity, index_shards
from data_tools.dataset.reader import Store
from data_tools.dataset.shard_files import GZIPPED, PLAIN, find_shards
from data_tools.decode.kinds import PICKLE_EXTENSIONS
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_NAME, MANIFEST_VERSION, read_manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once, cache_folder
from data_tools.storage.objects import MissingError, Retry, is_remote, read_all, redacted
from data_tools.storage.segments import FetchOptions

log = logging.getLogger(__name__)


def open_dataset(
    source: str | Path | Sequence[str | Path],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 - frozen
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Dataset:
    """Open ``sample:digits``, a folder or its URL, a manifest, one tar, a glob, or a list of tars or their URLs.

    Tars without a manifest are indexed once into the cache. Raises UserError when there is nothing to open.
    """
    folder, base = _manifest_folder(source, fetching.retry)
    manifest = read_manifest(folder / MANIFEST_NAME)
    refused = sorted(e for e in manifest.extensions if e.rsplit(".", 1)[-1] in PICKLE_EXTENSIONS)
    if refused:
        raise UserError(
            f"{source}: members .{', .'.join(refused)} are pickles, which can run code; repack the data without them"
        )
    if not int(manifest.counts.sum()):
        raise UserError(f"{source}: holds no usable samples; run `python -m data_tools verify` to see why")
    return Dataset(Store(manifest, folder, base, fetching), options)


def open_marked(folder: Path) -> Dataset:
    """A folder with a manifest, even when all of its samples are marked bad: for ``verify``."""
    return Dataset(Store(read_manifest(folder / MANIFEST_NAME), folder, "", FetchOptions()), DecodeOptions())


def _manifest_folder(source: str | Path | Sequence[str | Path], retry: Retry) -> tuple[Path, str]:
    """(local folder with the manifest, its base URL if it is remote) of whatever was asked for."""
    if not isinstance(source, str | Path):
        return _indexed_folder([str(item) for item in source], str(list(source)[:1])), ""
    text = str(source)
    if text.startswith("pipe:"):
        raise UserError(f"{text}: pipe: URLs run a shell and are refused; download the shards first")
    if text.startswith("sample:"):
        from data_tools.samples import sample_folder

        return sample_folder(text.removeprefix("sample:")), ""
    if is_remote(text):
        return (
            (_indexed_folder([text], text), "")
            if text.endswith(PLAIN + GZIPPED)
            else _remote_folder(text, retry)
        )
    path = Path(text).expanduser()
    if path.name == MANIFEST_NAME:
        return path.parent, ""
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return path, ""
        found = find_shards(path, gzipped=True)
        for file, why in found.left_out:
            log.warning("%s: left out: %s", file, why)
        return _indexed_folder(list(map(str, found.used)), text), ""
    return _indexed_folder([text] if path.is_file() else sorted(glob.glob(text)), text), ""  # noqa: PTH207


def _remote_folder(url: str, retry: Retry) -> tuple[Path, str]:
    """Copy a remote manifest here; it is small, and may have changed since the last time."""
    base = url.removesuffix(MANIFEST_NAME).rstrip("/")
    folder = cache_folder() / "remote" / hashlib.blake2b(base.encode(), digest_size=16).hexdigest()
    try:
        write_atomically(folder / MANIFEST_NAME, read_all(f"{base}/{MANIFEST_NAME}", retry))
    except MissingError as error:
        raise UserError(f"{error}: no manifest there; write one with `python -m data_tools index`") from None
    return folder, base


def _indexed_folder(tars: list[str], asked: str) -> Path:
    """Index tars into the cache, unless that was done for these very files before; gzipped ones are unpacked."""
    if not tars:
        raise UserError(
            f"{asked}: no such data set; give a folder with manifest.json or .tar files, a glob, or sample:NAME"
        )
    digest = hashlib.blake2b(digest_size=16)
    for name in tars:
        digest.update(f"{identity(name)}\0".encode())

    def build(folder: Path) -> None:
        log.info(
            "%s: no manifest; indexing %d tars (`python -m data_tools index` keeps it)",
            redacted(asked),
            len(tars),
        )
        _, bad = index_shards(tars, folder)
        for shard, key, fault in bad[:20]:
            log.warning("%s: %s: %s", shard, key or "shard", fault)

    return build_once(cache_folder() / f"index-v{MANIFEST_VERSION}" / digest.hexdigest(), build)
