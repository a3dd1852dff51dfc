"""Sources that cannot be indexed, through plain ``wds.WebDataset``, with the guarantees that this costs spelled out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import Sample, decode_sample
from data_tools.errors import UserError
from data_tools.storage.urls import redacted
from data_tools.stream.collate import collate, collate_named
from data_tools.stream.loader import Transform, make_example, name_sample

log = logging.getLogger(__name__)

LOST = (
    "without an index there is no exact resumption, no fixed number of steps, no order that is independent of ranks and"
    " workers, and damaged shards lose samples unnoticed"
)


def unindexed_samples(
    urls: str | Sequence[str], seed: int = 0, buffer: int = 1000, rank: int = 0, world_size: int = 1,
    options: DecodeOptions = DecodeOptions(), allow_pipe: bool = False,  # noqa: B008 - frozen
) -> Iterator[Sample]:  # fmt: skip
    """Endless decoded samples of this rank's shards, shuffled by shard and in a buffer of ``buffer`` samples."""
    import webdataset as wds

    expanded = wds.shardlists.expand_urls(urls) if isinstance(urls, str) else list(urls)
    pipes = [url for url in expanded if url.startswith("pipe:")]
    if pipes and not allow_pipe:
        raise UserError(
            f"{pipes[0]}: pipe: URLs run a shell and are refused; pass allow_pipe=True if you trust them"
        )
    if len(expanded) < world_size:
        raise UserError(
            f"{len(expanded)} shards for {world_size} ranks: give each rank at least one, or index them"
        )
    log.warning("%d shards are read without an index: %s", len(expanded), LOST)
    for epoch in range(1 << 62):
        order = np.random.default_rng([seed, epoch]).permutation(len(expanded))
        mine = [expanded[i] for i in order[rank::world_size]]
        pipeline = wds.WebDataset(mine, shardshuffle=False, nodesplitter=None, empty_check=False)
        seen = 0
        for raw in pipeline.shuffle(buffer, seed=seed + epoch):
            members = {name: memoryview(value) for name, value in raw.items() if isinstance(value, bytes)}
            try:
                sample = decode_sample(raw["__key__"], members, options)
            except DecodeError as error:
                log.warning("%s: sample %s: %s", redacted(str(raw.get("__url__"))), raw["__key__"], error)
                continue
            sample["__epoch__"] = epoch
            sample["__url__"] = url = str(raw.get("__url__"))
            sample["__drawn_by__"] = f"{url}\0{sample['__key__']}"  # a key may repeat in another shard
            seen += 1
            yield sample
        if not seen:
            raise UserError(f"{redacted(mine[0])}: no sample came from {len(mine)} shards; check the URLs")


def unindexed_batches(
    samples: Iterator[Sample], transform: Transform, batch_size: int, seed: int = 0
) -> Iterator[Any]:
    """(batch, keys) of transformed samples, each batch full."""
    examples, keys = [], []
    for sample in samples:
        keys.append(sample["__key__"])
        try:
            examples.append(make_example(sample, transform, seed))
        except Exception as error:
            name_sample(error, keys[-1], [redacted(sample["__url__"])])
            raise
        if len(examples) == batch_size:
            yield collate_named(collate, examples, keys), keys
            examples, keys = [], []
