"""Whether two data sets, such as those to train on and to be judged by, have samples in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_tools.dataset.dataset import Dataset
from data_tools.errors import UserError
from data_tools.storage.location import location_of
from data_tools.storage.objects import is_remote

MAX_SHARDS = 256
"""Pairs of shards that are compared: two selections of the same shards that overlap at all do so in nearly each."""


def count_shared(first: Dataset, second: Dataset) -> int:
    """Samples that both have, by where they lie in which shard, from sidecars alone; copies elsewhere are not found.

    A shard is the same at the same place, and at another where its name, size, and the samples' CRC are. Where the two
    have more than `MAX_SHARDS` shards in common, so many of them are compared.
    """
    if first.fingerprint == second.fingerprint:
        return len(second)
    known: dict[tuple[str, int], list[int]] = {}
    for shard, key in enumerate(_name_shards(first)):
        known.setdefault(key, []).append(shard)
    pairs = [(one, other) for other, key in enumerate(_name_shards(second)) for one in known.get(key, ())]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_SHARDS)).astype(np.int64))
    return sum(_count_in_shard(first, second, *pairs[number]) for number in chosen.tolist())


def _name_shards(dataset: Dataset) -> list[tuple[str, int]]:
    names = (url.rsplit("/", 1)[-1] for url in dataset.manifest.urls)
    return list(zip(names, dataset.manifest.bytes.tolist(), strict=True))


def _count_in_shard(first: Dataset, second: Dataset, one: int, other: int) -> int:
    mine, theirs = first.numbers_in(one), second.numbers_in(other)
    if not (len(mine) and len(theirs)):
        return 0
    a, b = first.valid_sidecar(one), second.valid_sidecar(other)
    same_place = _place(first, one) == _place(second, other)
    if not same_place and (a.crc is None or b.crc is None):
        return 0
    _, at_a, at_b = np.intersect1d(a.offset[mine], b.offset[theirs], assume_unique=True, return_indices=True)
    if same_place:
        return len(at_a)
    assert a.crc is not None and b.crc is not None
    return int((a.crc[mine][at_a] == b.crc[theirs][at_b]).sum())


def _place(dataset: Dataset, shard: int) -> str:
    place = dataset.location(shard)
    return location_of(place) if is_remote(place) else str(Path(place).resolve())


def refuse_shared(train: Dataset, test: Dataset, train_name: str, test_name: str) -> None:
    """Raise UserError where what is learned from and what is judged by have samples in common.

    The names are those of the settings with their values, such as ``data.test=shards/``.
    """
    shared = count_shared(train, test)
    if shared:
        raise UserError(
            f"{test_name}: {shared:,} of its samples stand in {train_name} too, which is trained on; hold samples out "
            "with `python -m data_tools split`"
        )
