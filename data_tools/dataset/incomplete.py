"""Samples that lack a member which nearly all others have: their place is said before a run meets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_tools.decode.kinds import PICKLE_EXTENSIONS, kind_of

USUAL = 0.9  # of the samples have a field; those without it are incomplete

MARKED = 0.01
"""Of the samples at most are marked as incomplete by `verify`, or a single one: what a run bears as damage. Where more
lack a field, that is how the data are: some have no label."""

Kinds = list[list[Any]]  # [extensions, how many sound samples have just these, the first one's key]


def find_incomplete(shards: Iterable[tuple[str, Kinds]]) -> list[tuple[str, str, str]]:
    """(shard, key, what it lacks) for each shard and field: the first of the samples without it, and their number.

    They stay in the data set, since not every use needs every field; one that is needed and not there counts as
    damage when it is read. `verify` marks them where they are few.
    """
    rows = [
        (shard, fields_of(extensions), count, first)
        for shard, kinds in shards
        for extensions, count, first in kinds
    ]
    often: Counter[str] = Counter()
    for _, fields, count, _ in rows:
        often.update(dict.fromkeys(fields, count))
    total = sum(count for _, _, count, _ in rows)
    usual = sorted(name for name, count in often.items() if USUAL * total <= count < total)
    lacking: dict[tuple[str, str], tuple[int, str]] = {}
    for shard, fields, count, first in rows:
        for name in usual:
            if name not in fields:
                before, key = lacking.get((shard, name), (0, first))
                lacking[shard, name] = (before + count, key)
    return [
        (shard, key, f"incomplete: has no {name}, as other samples have{_others(count)}")
        for (shard, name), (count, key) in lacking.items()
    ]


def fields_of(extensions: Iterable[str]) -> frozenset[str]:
    """The fields that members of these extensions become, whatever the format: a jpg and a png are an image."""
    return frozenset(map(_field, extensions))


def fields_to_mark(lacking: Counter[str], total: int) -> frozenset[str]:
    """Fields that all others of ``total`` samples have, by how many samples lack each: see `MARKED`."""
    most = min(max(1, MARKED * total), (1 - USUAL) * total)
    return frozenset(name for name, count in lacking.items() if count <= most)


def _others(count: int) -> str:
    return f"; nor have {count - 1} others of this shard" if count > 1 else ""


def _field(extension: str) -> str:
    last = extension.rsplit(".", 1)[-1]
    return extension if last in PICKLE_EXTENSIONS else kind_of(extension) or f".{extension}"
