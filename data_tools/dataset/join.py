"""Several data sets as one: their manifests joined, no shard touched."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.dataset.reader import Store
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_VERSION, Manifest, MarksSeal, write_manifest
from data_tools.formats.marks import Mark, marks_to_bytes
from data_tools.storage.atomic import write_atomically
from data_tools.storage.cache_folder import build_once
from data_tools.storage.checksum import crc32, digest_text
from data_tools.storage.location import location_of
from data_tools.storage.urls import is_remote, redacted

AT_ONCE = 32
"""Sidecars being fetched."""
TOKENIZER = "tokenizer.json"


def join_manifests(stores: Sequence[Store]) -> Manifest:
    """One manifest over the shards of several data sets, in their order, by absolute path or URL (without secrets).

    Raises:
        UserError: a shard stands in two of them, or their classes or tokenizers differ.
    """
    manifests = [store.manifest for store in stores]
    urls = [location_of(place) for store in stores for place in absolute_places(store)]
    twice = [url for url, count in Counter(urls).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: stands in two of the data sets that are to be one; name it once")
    return Manifest(
        urls=urls,
        samples=np.concatenate([manifest.samples for manifest in manifests]),
        bad=np.concatenate([manifest.bad for manifest in manifests]),
        bytes=np.concatenate([manifest.bytes for manifest in manifests]),
        checksums=np.concatenate([manifest.checksums for manifest in manifests]),
        extensions=tuple(sorted({one for manifest in manifests for one in manifest.extensions})),
        has_length=all(manifest.has_length for manifest in manifests),
        about=join_abouts(stores),
        has_crc=all(store.knows_content for store in stores),
        marks=seal_marks(join_marks(stores)),
        versions=join_versions(manifests),
    )


def join_marks(stores: Sequence[Store]) -> list[Mark]:
    """What `verify` marked in each of them, by the number that its shard has among all."""
    marks, before = [], 0
    for store in stores:
        found = [mark for rows in store.marks.values() for mark in rows.values()]
        marks += [mark._replace(shard=mark.shard + before) for mark in found]
        before += len(store.manifest.urls)
    return marks


def seal_marks(marks: Sequence[Mark]) -> MarksSeal | None:
    """What the manifest says of the file of marks; None where there are none."""
    return MarksSeal(len(marks), crc32(marks_to_bytes(marks))) if marks else None


def join_versions(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """Of each shard; empty where none is known."""
    versions = [v for manifest in manifests for v in (manifest.versions or ("",) * len(manifest.urls))]
    return tuple(versions) if any(versions) else ()


def absolute_places(store: Store) -> list[str]:
    """Absolute path or URL of each shard, as it is reached."""
    places = [store.location(shard) for shard in range(len(store.manifest.urls))]
    return [place if is_remote(place) else str(Path(place).resolve()) for place in places]


def join_abouts(stores: Sequence[Store]) -> dict[str, Any]:
    """What is said of all: what they agree on, and texts (licence, source) one after the other.

    Raises:
        UserError: their classes or tokenizers differ, so that the same number means two things.
    """
    abouts = [dict(store.manifest.about) for store in stores]
    for about, store in zip(abouts, stores, strict=True):
        if folder := tokenizer_folder(store):
            about["tokenizer"] = str(folder)
    for key in ("classes", "tokenizer"):
        said = [
            (store, identify(about[key])) for store, about in zip(stores, abouts, strict=True) if key in about
        ]
        for store, one in said:
            if one != said[0][1]:
                raise UserError(
                    f"{name_of(said[0][0])} and {name_of(store)}: have different {key}, so that a number does not mean "
                    "the same in both; name them as two sources of a mixture, or make them alike first"
                )
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for about in abouts for key in about):
        values = [about[key] for about in abouts if key in about]
        values = [value for number, value in enumerate(values) if value not in values[:number]]
        if len(values) == 1 or key == "tokenizer":
            joined[key] = values[0]
        elif all(isinstance(value, str) for value in values):
            joined[key] = "; ".join(values)
    return joined


def name_of(store: Store) -> str:
    """A data set as messages name it."""
    return redacted(store.base) or str(store.folder)


def tokenizer_folder(store: Store) -> Path | None:
    """Where the tokenizer of a data set lies: where its manifest says, else beside the shards."""
    named = store.manifest.about.get("tokenizer")
    places = [store.folder / named] if named else [store.folder, store.folder / "tokenizer"]
    return next((place.resolve() for place in places if (place / TOKENIZER).is_file()), None)


def identify(value: Any) -> str:
    """Classes by what they are, a tokenizer's folder by what is in it."""
    file = Path(value) / TOKENIZER if isinstance(value, str) else None
    content = file.read_bytes() if file and file.is_file() else json.dumps(value).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write_joined(manifest: Manifest, stores: Sequence[Store], folder: Path) -> None:
    """Write a joined manifest with its sidecars into ``folder``; those of remote data are fetched, many at once."""
    rows = [(store, shard) for store in stores for shard in range(len(store.manifest.urls))]

    def copy(number: int) -> None:
        store, shard = rows[number]
        source, target = store.sidecar_path(shard), folder / manifest.sidecar_name(number)
        if source.resolve() != target.resolve():
            write_atomically(target, source.read_bytes())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in pool.map(copy, range(len(rows))):
            assert done is None
    if manifest.marks is not None:
        write_atomically(folder / manifest.marks.name, marks_to_bytes(join_marks(stores)))
    write_manifest(manifest, folder)


def keep_joined(stores: Sequence[Store], cache: Path) -> Path:
    """The folder in the cache that holds several data sets as one; it is made unless it is there."""
    manifest = join_manifests(stores)
    said = [manifest.fingerprint, str(manifest.marks), json.dumps(manifest.about)]
    described = "\0".join([*said, *manifest.urls, *manifest.versions])
    return build_once(
        cache / f"joined-v{MANIFEST_VERSION}" / digest_text(described),
        lambda folder: write_joined(manifest, stores, folder),
    )
