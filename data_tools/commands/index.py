"""The manifest and sidecars of anyone's tars, on this machine or in an object store."""

from __future__ import annotations

import shutil
from pathlib import Path

from data_tools.dataset.expand import expand
from data_tools.dataset.index import index_shards
from data_tools.dataset.sources import find_tars, refuse_secrets
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_NAME, Manifest
from data_tools.storage.cache_folder import make_shared_folder
from data_tools.storage.checksum import digest_text
from data_tools.storage.location import name_ends
from data_tools.storage.locks import locked
from data_tools.storage.objects import is_remote, redacted
from data_tools.storage.segments import FetchOptions
from data_tools.storage.upload import upload

ENDINGS = (".tar",)
Bad = list[tuple[str, str, str]]  # shard, sample, what is wrong


def index(
    source: str, output: Path | None = None, with_crc: bool = True, processes: int | None = None,
    fetching: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> tuple[Manifest, Bad]:  # fmt: skip
    """Index the tars of a folder, prefix, glob, braces or URL; manifest and sidecars lie in ``output``, or beside them.

    Stopped, it goes on with the scans that are done. Returns the manifest, written already, and the bad samples.

    Raises:
        UserError: there are no tars, one is none, the manifest cannot be written beside them, or the URL has a secret.
    """
    refuse_secrets(source)
    whole = is_remote(source) and not name_ends(source, ENDINGS)
    if not (whole or output or Path(source).is_dir()):
        if is_remote(source) or any(sign in source for sign in "*?[{"):
            raise UserError(
                f"{redacted(source)}: is no folder to write a manifest to; name one with --output"
            )
        raise UserError(f"{source}: there is no such folder; give the folder that holds the .tar files")
    retry = fetching.retry
    tars = [tar for name in expand(source, retry) for tar in find_tars(name, ENDINGS, retry)]
    if not tars:
        raise UserError(f"{redacted(source)}: no .tar files to index; give a folder of WebDataset shards")
    if output or not whole:
        return index_shards(tars, output or Path(source), with_crc, processes, fetching=fetching)
    return _index_beside(source.rstrip("/"), tars, with_crc, processes, fetching)


def _index_beside(
    base: str, tars: list[str], with_crc: bool, processes: int | None, fetching: FetchOptions
) -> tuple[Manifest, Bad]:
    """Index below a URL, and write there, the manifest last."""
    folder = fetching.cache / "indexing" / digest_text(base)
    make_shared_folder(folder.parent)
    with locked(folder.with_suffix(".lock"), fleeting=True):
        manifest, bad = index_shards(tars, folder, with_crc, processes, base, fetching)
        sidecars = [manifest.sidecar_name(shard) for shard in range(len(manifest.urls))]
        upload(folder, [*sidecars, MANIFEST_NAME], base, fetching.retry)
        shutil.rmtree(folder)
    return manifest, bad
