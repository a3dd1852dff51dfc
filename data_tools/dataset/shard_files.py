"""Which files of a folder are shards, and which look like shards and are not used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.storage.folders import walk_folder

PLAIN, GZIPPED = (".tar",), (".tar.gz", ".tgz")
_OTHERS = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a folder, sorted, and (file, why it is not used) of what else looks like one."""

    used: list[Path]
    left_out: list[tuple[Path, str]]


def find_shards(folder: Path, gzipped: bool) -> ShardFiles:
    """Look for tars in a folder and those below; ``gzipped``: whether gzipped ones are used, where no plain twin is."""
    walk = walk_folder(folder)
    used: list[Path] = []
    left_out = [
        (path, why)
        for path, why in walk.passed_over
        if why != "hidden" and path.name.lower().endswith(PLAIN + GZIPPED)
    ]
    for path in walk.files:
        name = path.name.lower()
        if name.endswith(PLAIN):
            used.append(path)
        elif name.endswith(GZIPPED):
            ending = next(ending for ending in GZIPPED if name.endswith(ending))
            twin = path.with_name(f"{path.name[: -len(ending)]}.tar")
            if twin.is_file():
                left_out.append((path, f"{twin.name} stands beside it"))
            elif gzipped:
                used.append(path)
            else:
                left_out.append(
                    (path, "gzipped, so samples cannot be read from its middle: unpack it (`gunzip`)")
                )
        elif name.endswith(_OTHERS):
            left_out.append((path, "compressed, so samples cannot be read from its middle: unpack it"))
    return ShardFiles(used, sorted(left_out))
