"""Which bytes a data set is: what it was called before, at which places it lies, and whether a shard was replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_tools.dataset.sources import describe_shards
from data_tools.errors import UserError
from data_tools.formats.manifest import LAYOUT_ONLY, Manifest, digest_shards
from data_tools.formats.sidecar import Sidecar
from data_tools.storage.checksum import crc32, digest_text
from data_tools.storage.location import location_of
from data_tools.storage.objects import ObjectInfo, Retry, describe_object, is_remote


def find_former_fingerprints(
    manifest: Manifest, sidecars: Iterable[Sidecar], sources: Sequence[str]
) -> set[str]:
    """What these very data were called when less was known of them: without CRC, by the names of signed URLs."""
    layout = np.array([crc32(replace(s, crc=None).to_bytes()) for s in sidecars], dtype=np.uint32)
    return {
        prefix + digest_shards(manifest, urls, checksums)
        for urls in (manifest.urls, sources or manifest.urls)
        for checksums in (manifest.checksums, layout)
        for prefix in ("", LAYOUT_ONLY)
    }


def name_cache(manifest: Manifest, places: Iterable[str], versions: Iterable[str], segment: int) -> str:
    """The cache folder's name for segments of ``segment`` samples of these shards at their places, and no others."""
    described = [manifest.fingerprint, str(segment), *map(location_of, places), *versions]
    return digest_text("\0".join(described))


def ask_versions(manifest: Manifest, places: Sequence[str], retry: Retry) -> list[str]:
    """What the store says now tells each remote shard from others at its place, (remote shards,).

    Raises:
        UserError: a shard is not the one that was indexed.
    """
    remote = [shard for shard, place in enumerate(places) if is_remote(place)]
    said = describe_shards([places[shard] for shard in remote], retry)
    for shard, now in zip(remote, said, strict=True):
        if now is not None and (change := describe_change(manifest, shard, now)):
            raise UserError(f"{manifest.urls[shard]}: {change}")
    return ["" if now is None else now.version for now in said]


def describe_change(manifest: Manifest, shard: int, now: ObjectInfo) -> str:
    """How a shard differs from the one that was indexed; "" where nothing says so."""
    size, versions = int(manifest.bytes[shard]), manifest.versions
    if now.size != size:
        return (
            f"has {now.size:,} bytes, its index says {size:,}: cut or replaced since; run `data_tools index`"
        )
    if versions and versions[shard] and now.version and now.version != versions[shard]:
        return "was replaced since it was indexed; run `data_tools index`"
    return ""


def find_change(manifest: Manifest, shard: int, place: str, retry: Retry) -> str:
    """`describe_change` of the shard as it lies at ``place`` now; "" where nothing can be asked."""
    try:
        now = (
            describe_object(place, retry) if is_remote(place) else ObjectInfo(Path(place).stat().st_size, "")
        )
    except (OSError, UserError):
        return ""
    return describe_change(manifest, shard, now)
