"""The tokenizer that lies beside remote tokens, copied beside the copy of their manifest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from data_tools.formats.manifest import Manifest
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import cache_errors, make_shared_folder, share
from data_tools.storage.objects import MissingError, Retry, read_all
from data_tools.storage.urls import join_url

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What `tokenize` writes, or copies from somebody's folder."""


def copy_tokenizer(manifest: Manifest, base: str, folder: Path, retry: Retry, anew: bool) -> None:
    """Fetch the tokenizer that a remote manifest names, into ``folder``, where the manifest has been copied to.

    A place outside the data set's own folder is not asked for: a manifest is not to be trusted with paths.

    Args:
        base: URL of the manifest's folder.
        anew: also what is here already, since the manifest is another one.
    """
    named = PurePosixPath(str(manifest.about.get("tokenizer", "tokenizer")))
    if "tokens.npy" not in manifest.extensions or named.is_absolute() or ".." in named.parts:
        return
    if not anew and (folder / named / FILES[0]).exists():
        return
    for name in FILES:
        path = folder / named / name
        try:
            data = read_all(join_url(base, f"{named}/{name}"), retry)
        except MissingError:  # not every tokenizer has all of them
            continue
        with cache_errors(path.parent):
            make_shared_folder(path.parent)
            write_atomically(path, data)
            share(path)
