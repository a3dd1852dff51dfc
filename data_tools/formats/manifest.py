"""The manifest (one JSON beside the shards) and the sidecar (one flat binary a shard): where every sample lies.

``manifest.json`` is also a valid wids index: ``shardlist`` with ``url`` and ``nsamples``. Sidecar: magic, header
length u32, JSON header, then columns of n little-endian values each: ``offset`` u64 and ``size`` u32 (bytes of the
whole sample, tar headers included), ``valid`` u8, and where known ``crc`` u32 (CRC-32 of those bytes; tar has no
payload checksum) and ``length`` u32 (tokens, audio frames, video frames).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import text_bytes

MANIFEST_NAME = "manifest.json"

MANIFEST_VERSION = 1

LAYOUT_ONLY = "layout-"
"""Begins a fingerprint that knows where samples lie, but not what is in them."""


@dataclass(frozen=True)
class Shard:
    """One entry of the manifest: ``samples`` counts bad ones too; ``checksum`` is the CRC-32 of the sidecar."""

    url: str
    samples: int
    bad: int
    bytes: int
    checksum: int
    version: str = ""
    """What told it from other objects at its URL when it was indexed (ETag …); "" on local disks."""


@dataclass(frozen=True)
class MarksSeal:
    """How many samples are marked as bad, and the CRC-32 of the file that says which: see `marks.py`."""

    samples: int
    checksum: int

    @property
    def name(self) -> str:
        """Of the file, beside the manifest: another content has another name, so no reader finds half of a change."""
        return f"marks-{self.checksum:08x}.jsonl"


@dataclass(frozen=True)
class Manifest:
    """All shards of a data set, in columns so that 10⁵ of them are small."""

    urls: list[str]
    samples: NDArray[np.int64]  # (shards,), bad ones included
    bad: NDArray[np.int64]
    bytes: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    extensions: tuple[str, ...]
    has_length: bool = False
    about: dict[str, Any] = field(default_factory=dict)  # licence, source, tokenizer folder …
    has_crc: bool | None = (
        None  # whether every sidecar has a CRC of each sample; None: written before this was said
    )
    marks: MarksSeal | None = None  # what `verify` found, where it found something
    versions: tuple[str, ...] = ()  # of each shard, where any is known: see Shard.version

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Valid samples of each shard, the ones that have positions."""
        return self.samples - self.bad

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over every shard's name, size, and sidecar: where the data lie, and marks, do not matter.

        ``layout-`` stands before them where no CRC was taken: other bytes of the same sizes then have the same one.
        """
        digits = digest_shards(self, self.urls, self.checksums)
        return f"{LAYOUT_ONLY}{digits}" if self.has_crc is False else digits

    def sidecar_name(self, shard: int) -> str:
        """Path of a sidecar within the manifest's folder: beside the shard, or by number for shards elsewhere."""
        url = self.urls[shard]
        elsewhere = "://" in url or Path(url).is_absolute() or ".." in Path(url).parts
        return f"{shard:08d}.sidecar" if elsewhere else f"{url}.sidecar"


def digest_shards(manifest: Manifest, urls: Sequence[str], checksums: NDArray[np.uint32]) -> str:
    """32 hex digits over the shards of a manifest, under these names and checksums of their sidecars, (shards,)."""
    digest = hashlib.blake2b(digest_size=16)
    for url in urls:
        digest.update(text_bytes(url.rsplit("/", 1)[-1]) + b"\0")
    for column in (manifest.samples, manifest.bad, manifest.bytes, checksums.astype(np.int64)):
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def make_manifest(
    shards: list[Shard],
    extensions: tuple[str, ...],
    has_length: bool = False,
    about: dict[str, Any] | None = None,
    has_crc: bool | None = None,
) -> Manifest:
    """A manifest of these shards, without marks; ``has_crc``: whether every sidecar has a CRC of each sample."""
    return Manifest(
        urls=[s.url for s in shards],
        samples=np.array([s.samples for s in shards], dtype=np.int64),
        bad=np.array([s.bad for s in shards], dtype=np.int64),
        bytes=np.array([s.bytes for s in shards], dtype=np.int64),
        checksums=np.array([s.checksum for s in shards], dtype=np.uint32),
        extensions=extensions,
        has_length=has_length,
        about=about or {},
        has_crc=has_crc,
        versions=tuple(s.version for s in shards) if any(s.version for s in shards) else (),
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` atomically, one shard a line."""
    head = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "manifest_version": MANIFEST_VERSION,
        "fingerprint": manifest.fingerprint,
        "extensions": list(manifest.extensions),
        "has_length": manifest.has_length,
        "about": manifest.about,
    }
    if manifest.has_crc is not None:
        head["has_crc"] = manifest.has_crc
    if manifest.marks is not None:
        head["marks"] = asdict(manifest.marks)
    versions = manifest.versions or [""] * len(manifest.urls)
    columns = (manifest.urls, manifest.samples, manifest.bad, manifest.bytes, manifest.checksums, versions)
    lines = [
        json.dumps(
            {"url": u, "nsamples": int(n), "bad": int(b), "filesize": int(s), "checksum": int(c)}
            | ({"version": v} if v else {})
        )
        for u, n, b, s, c, v in zip(*columns, strict=True)
    ]
    text = json.dumps(head, indent=1)[:-2] + ',\n "shardlist": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    write_atomically(folder / MANIFEST_NAME, text.encode())


def read_manifest(path: Path, place: str = "") -> Manifest:
    """Read a manifest; raises UserError when it is not one, naming ``place`` where ``path`` is but a copy of it."""
    urls: list[str] = []
    versions: list[str] = []
    rows = array("q")

    def keep(entry: dict[str, Any]) -> dict[str, Any] | None:
        """Called as each JSON object closes: a shard's dictionary is dropped before the next one is read."""
        if "url" not in entry or "nsamples" not in entry:
            return entry
        urls.append(str(entry["url"]))
        versions.append(str(entry.get("version", "")))
        rows.extend(int(entry.get(name, 0)) for name in ("nsamples", "bad", "filesize", "checksum"))
        return None

    try:
        head = json.loads(path.read_bytes(), object_hook=keep)
        table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 4)
        if head.get("manifest_version") != MANIFEST_VERSION:
            raise ValueError(f"manifest_version {head.get('manifest_version')} is not {MANIFEST_VERSION}")
        samples, bad, sizes, checksums = (np.ascontiguousarray(table[:, i]) for i in range(4))
        _check_shards(urls, samples, bad, sizes)
        if not all(isinstance(extension, str) for extension in head["extensions"]):
            raise ValueError("extensions are no list of texts")
        seal, has_crc = head.get("marks"), head.get("has_crc")
        return Manifest(
            urls, samples, bad, sizes, checksums.astype(np.uint32),
            tuple(head["extensions"]), bool(head["has_length"]), dict(head["about"]),
            None if has_crc is None else bool(has_crc),
            None if seal is None else MarksSeal(int(seal["samples"]), int(seal["checksum"])),
            tuple(versions) if any(versions) else (),
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no manifest; write one with `python -m data_tools index`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{place or path}: not a manifest of this version ({error}); run `python -m data_tools index`"
        ) from None


def _check_shards(
    urls: Sequence[str], samples: NDArray[np.int64], bad: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Raise a ValueError for shards that no data set has: damage, or somebody's program, not ours, wrote it."""
    impossible = np.flatnonzero((samples < 0) | (bad < 0) | (bad > samples) | (sizes < 0))
    if len(impossible):
        shard = int(impossible[0])
        raise ValueError(
            f"{urls[shard]}: {bad[shard]} bad ones among {samples[shard]} samples in {sizes[shard]} bytes"
        )
    if any(not url or "\0" in url for url in urls):
        raise ValueError("the name of a shard is empty, or has a zero byte in it")
    "".join(urls).encode("utf-8", "surrogateescape")  # a lone surrogate is not even a byte of a name
