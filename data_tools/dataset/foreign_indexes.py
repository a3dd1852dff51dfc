"""Indexes of other tools: wids (our manifest is one), Energon's ``.nv-meta`` and ``.tar.idx``, DALI's ``.idx``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.index import index_shards
from data_tools.errors import UserError
from data_tools.formats import tar
from data_tools.formats.manifest import Manifest, Shard, make_manifest, write_manifest
from data_tools.formats.sidecar import Sidecar
from data_tools.formats.tar_walk import members
from data_tools.storage.atomic import write_atomically
from data_tools.storage.checksum import crc32
from data_tools.storage.objects import is_remote


def import_wids(path: Path, folder: Path) -> Manifest:
    """Index the shards that a wids ``shardlist`` names into ``folder``; counts that differ are refused."""
    try:
        entries = json.loads(path.read_bytes())["shardlist"]
        listed = [(str(entry["url"]), int(entry["nsamples"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a wids index ({type(error).__name__}: {error}); it needs a shardlist"
        ) from None
    names = [url if is_remote(url) else str(path.parent / url) for url, _ in listed]
    manifest, _ = index_shards(names, folder)
    if len(manifest.urls) != len(listed):
        raise UserError(
            f"{path}: lists {len(listed)} shards, of which {len(listed) - len(manifest.urls)} hold no samples; index"
            " the folder with `python -m data_tools index`"
        )
    for (url, expected), found in zip(listed, manifest.samples.tolist(), strict=True):
        if expected != found:
            raise UserError(
                f"{url} ({path}): the index says {expected} samples, the shard has {found}; index it anew"
            )
    return manifest


def import_energon(folder: Path) -> Manifest:
    """Manifest and sidecars from an Energon data set's own indexes, without scanning the shards."""
    counts = _energon_counts(folder / ".nv-meta")
    shards: list[Shard] = []
    sidecars: list[bytes] = []
    extensions: set[str] = set()
    for name, count in counts.items():
        path = folder / name
        try:
            offsets = np.frombuffer((folder / f"{name}.idx").read_bytes(), dtype="<u8")
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be imported ({error}); run `python -m data_tools index`"
            ) from None
        if len(offsets) != count + 1 or (np.diff(offsets.astype(np.int64)) <= 0).any() or offsets[-1] > size:
            raise UserError(f"{path}.idx: does not fit the shard; run `python -m data_tools index`")
        sidecar = Sidecar(offsets[:-1], np.diff(offsets).astype(np.uint32), np.ones(count, dtype=np.uint8))
        extensions |= _first_extensions(path, sidecar)
        data = sidecar.to_bytes()
        sidecars.append(data)
        shards.append(Shard(name, count, 0, size, crc32(data)))
    manifest = make_manifest(shards, tuple(sorted(extensions)), has_crc=False)
    for number, data in enumerate(sidecars):
        write_atomically(folder / manifest.sidecar_name(number), data)
    write_manifest(manifest, folder)
    return manifest


def _energon_counts(meta: Path) -> dict[str, int]:
    for name in (".info.json", ".info.yaml"):
        if (meta / name).is_file():
            info = yaml.safe_load((meta / name).read_text())  # JSON is YAML
            return {str(shard): int(count) for shard, count in info["shard_counts"].items()}
    raise UserError(f"{meta.parent}: has no .nv-meta/.info.json; is it an Energon data set?")


def _first_extensions(path: Path, sidecar: Sidecar) -> set[str]:
    with path.open("rb") as file:
        file.seek(int(sidecar.offset[0]))
        try:
            return set(tar.sample_members(file.read(int(sidecar.size[0])))[1])
        except tar.TarError as error:
            raise UserError(
                f"{path}: its .idx does not fit ({error}); run `python -m data_tools index`"
            ) from None


def export_energon(dataset: Dataset) -> None:
    """Write ``.tar.idx`` files and ``.nv-meta`` beside the shards; all samples go to the train split."""
    folder = _home(dataset)
    manifest = dataset.manifest
    for shard, url in enumerate(manifest.urls):
        sidecar = dataset.valid_sidecar(shard)
        if len(sidecar) != manifest.samples[shard]:
            raise UserError(
                f"{folder / url}: has bad samples, which Energon cannot leave out; pack it again first"
            )
        end = int(sidecar.offset[-1]) + int(sidecar.size[-1])
        write_atomically(folder / f"{url}.idx", np.append(sidecar.offset, end).astype("<u8").tobytes())
    counts = dict(zip(manifest.urls, manifest.samples.tolist(), strict=True))
    meta = folder / ".nv-meta"
    write_atomically(
        meta / ".info.json", json.dumps({"energon_version": "7.0.0", "shard_counts": counts}).encode()
    )
    split = {"split_parts": {"train": manifest.urls, "val": [], "test": []}, "exclude": []}
    write_atomically(meta / "split.yaml", yaml.safe_dump(split).encode())
    crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    write_atomically(meta / "dataset.yaml", yaml.safe_dump(crude).encode())


def export_dali(dataset: Dataset) -> None:
    """Write DALI's text indexes (``fn.readers.webdataset(index_paths=…)``) beside the shards: ``<shard>.dali.idx``."""
    folder = _home(dataset)
    for shard, url in enumerate(dataset.manifest.urls):
        sidecar = dataset.valid_sidecar(shard)
        lines = [f"v1.2 {len(sidecar)}"]
        handle = os.open(folder / url, os.O_RDONLY)
        try:
            for offset, size in zip(sidecar.offset.tolist(), sidecar.size.tolist(), strict=True):
                lines.append(" ".join(_components(handle, offset, offset + size)))
        finally:
            os.close(handle)
        write_atomically(
            folder / f"{url.removesuffix('.tar')}.dali.idx",
            ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"),
        )


def _components(handle: int, start: int, end: int) -> Iterator[str]:
    """``extension offset size name`` of each member of a sample."""
    for item in members(lambda offset, size: os.pread(handle, size, start + offset), end - start):
        parts = tar.split_name(item.name) if isinstance(item, tar.Member) and item.is_file else None
        if isinstance(item, tar.Member) and parts is not None:
            if item.sparse is not None:
                raise UserError(
                    f"{item.name}: a sparse member, which DALI cannot read; pack the data again first"
                )
            yield f"{parts[1]} {start + item.data} {item.size} {item.name}"


def _home(dataset: Dataset) -> Path:
    if dataset.remote or dataset.folder is None:
        raise UserError(
            f"{dataset.folder}: remote shards have no folder to write an index to; copy them first"
        )
    for url in dataset.manifest.urls:
        if Path(url).is_absolute() or ".." in Path(url).parts:
            raise UserError(
                f"{dataset.folder}: its shards lie elsewhere, such as {url}, where the index of a selection would stand"
                " for all of their samples; pack the selection by itself first"
            )
    return dataset.folder
