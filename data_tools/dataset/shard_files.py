"""Which of many files are shards, and which look like shards and are not used."""

from __future__ import annotations

from collections.abc import Iterable

TARS = (".tar", ".tar.gz", ".tgz")
_GZIPPED = (".tar.gz", ".tgz")
_OTHERS = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")


def choose_shards(names: Iterable[str], endings: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """(shards, sorted; what looks like one and is not used, with the reason) of the names of files or objects.

    ``endings``: of what is used. A gzipped tar whose plain twin stands beside it is left out.
    """
    names = sorted(names)
    known = set(names)
    used: list[str] = []
    left_out: list[tuple[str, str]] = []
    for name in names:
        lower = name.lower()
        ending = next((ending for ending in TARS + _OTHERS if lower.endswith(ending)), None)
        if ending is None:
            continue
        twin = f"{name[: -len(ending)]}.tar"
        if ending in _GZIPPED and twin in known:
            left_out.append((name, f"{twin.rsplit('/', 1)[-1]} stands beside it"))
        elif ending in endings:
            used.append(name)
        else:
            left_out.append((name, "compressed, so samples cannot be read from its middle: unpack it"))
    return used, left_out
