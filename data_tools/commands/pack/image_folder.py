"""Image folders: labelled (one folder a class) or not; files are kept as they are, after a decoding check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.commands.pack.engine import Packed, Skipped, Source, stamp
from data_tools.decode.kinds import IMAGE_EXTENSIONS
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.order.permutation import derive_key, permute


def plan(folder: Path, shard_bytes: int, labels: str = "auto") -> Source:
    """Jobs of about ``shard_bytes`` each. ``labels``: "folder" (the first folder's name), "none", or "auto".

    Files are dealt to shards by a fixed permutation, so that no shard holds one class only.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder that holds the images")
    files = sorted(_images(folder))
    if not files:
        raise UserError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    relative = [path.relative_to(folder) for path, _ in files]
    in_folders = all(len(path.parts) > 1 for path in relative)
    if labels == "folder" and not in_folders:
        raise UserError(
            f"{folder}: images lie outside of class folders; use --labels none, or sort them into folders"
        )
    labelled = labels == "folder" or (labels == "auto" and in_folders)
    classes = sorted({path.parts[0] for path in relative}) if labelled else []
    numbers = {name: number for number, name in enumerate(classes)}
    keys = _unique_keys(relative)
    jobs: list[list[Any]] = [[]]
    room = shard_bytes
    for i in permute(np.arange(len(files)), len(files), derive_key(0)).tolist():
        path, size = files[i]
        if size > room and jobs[-1]:
            jobs.append([])
            room = shard_bytes
        room -= size
        label = numbers[relative[i].parts[0]] if labelled else None
        jobs[-1].append([str(path), keys[i], label])
    about = {"source": folder.name, **({"classes": classes} if labelled else {})}
    return Source(read, jobs, about, stamp=stamp(path for path, _ in files))


def _images(folder: Path) -> Iterator[tuple[Path, int]]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS and not name.startswith("."):
                try:
                    yield path, path.stat().st_size
                except OSError:
                    yield path, 0  # a dangling link: reading it says so


def _unique_keys(paths: list[Path]) -> list[str]:
    """Keys from relative paths: no dots in the last part (they would start the extension), none twice."""
    keys: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = (path.parent / path.stem.replace(".", "_")).as_posix()
        key, number = base, 1
        while key in taken:
            key, number = f"{base}_{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def read(job: list[Any]) -> Iterator[Packed | Skipped]:
    for name, key, label in job:
        path = Path(name)
        extension = path.suffix.lower().removeprefix(".")
        try:
            data = path.read_bytes()
            decode_sample(key, {extension: memoryview(data)}, DecodeOptions())
        except (OSError, DecodeError) as error:
            yield Skipped(name, str(error))
            continue
        yield Packed(
            key, {extension: data} if label is None else {extension: data, "cls": str(label).encode()}
        )
