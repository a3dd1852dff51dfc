"""Every sample exactly once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_tools.dataset.dataset import Dataset
from data_tools.stream.collate import Collate, collate, collate_named
from data_tools.stream.loader import Transform, make_example, name_sample
from data_tools.stream.samples import draw_by_shard


def evaluation_batches(
    dataset: Dataset, transform: Transform, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0,
    collate: Collate = collate,
) -> Iterator[tuple[dict[str, Any], list[str]]]:  # fmt: skip
    """Every sample exactly once over all ranks, in manifest order: rank r takes indices ≡ r (mod world size).

    Samples that `verify` marked are left out. Ranks may have unequal numbers of batches, and the last may be smaller.
    Raises DamagedSampleError: a metric over other samples than the named ones is worth nothing.
    """
    dataset = dataset.unmarked()
    mine = np.arange(rank, len(dataset), world_size)
    for start in range(0, len(mine), batch_size):
        shards, numbers = dataset.locate(mine[start : start + batch_size])
        examples, keys = [], []
        for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
            sample = dataset.read(shard, number)
            sample["__epoch__"] = 0
            if dataset.keys_repeat:
                draw_by_shard(sample, shard)
            keys.append(sample["__key__"])
            try:
                examples.append(make_example(sample, transform, seed))
            except Exception as error:
                name_sample(error, keys[-1], [dataset.manifest.urls[shard]])
                raise
        yield collate_named(collate, examples, keys), keys
