"""Sharded data as a stream: the i-th sample of a run is a pure function of (seed, data set, i).

The public names can be imported from here: ``from data_tools import Loader, Stream, open_dataset``. They are imported
when they are first used, so that a command that reads no data starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_tools.dataset.damage import IncompleteSampleError as IncompleteSampleError
    from data_tools.dataset.dataset import Dataset as Dataset
    from data_tools.dataset.open import open_dataset as open_dataset
    from data_tools.decode.options import DecodeOptions as DecodeOptions
    from data_tools.errors import UserError as UserError
    from data_tools.formats.shard_writer import ShardWriter as ShardWriter
    from data_tools.formats.shard_writer import finish_dataset as finish_dataset
    from data_tools.storage.options import StorageOptions as StorageOptions
    from data_tools.storage.retry import Retry as Retry
    from data_tools.storage.segments import FetchOptions as FetchOptions
    from data_tools.stream.collate import Pad as Pad
    from data_tools.stream.collate import collate as collate
    from data_tools.stream.evaluation import evaluation_batches as evaluation_batches
    from data_tools.stream.loader import Loader as Loader
    from data_tools.stream.mixed import Mixture as Mixture
    from data_tools.stream.mixing_plan import MixingPlan as MixingPlan
    from data_tools.stream.packed import PackedStream as PackedStream
    from data_tools.stream.samples import Stream as Stream
    from data_tools.stream.torch_dataset import StreamDataLoader as StreamDataLoader
    from data_tools.stream.torch_dataset import StreamDataset as StreamDataset

_HOMES = {
    "Dataset": "dataset.dataset",
    "DecodeOptions": "decode.options",
    "FetchOptions": "storage.segments",
    "IncompleteSampleError": "dataset.damage",
    "Loader": "stream.loader",
    "MixingPlan": "stream.mixing_plan",
    "Mixture": "stream.mixed",
    "PackedStream": "stream.packed",
    "Pad": "stream.collate",
    "Retry": "storage.retry",
    "ShardWriter": "formats.shard_writer",
    "StorageOptions": "storage.options",
    "Stream": "stream.samples",
    "StreamDataLoader": "stream.torch_dataset",
    "StreamDataset": "stream.torch_dataset",
    "UserError": "errors",
    "collate": "stream.collate",
    "evaluation_batches": "stream.evaluation",
    "finish_dataset": "formats.shard_writer",
    "open_dataset": "dataset.open",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'data_tools' has no attribute {name!r}")
    return getattr(import_module(f"data_tools.{_HOMES[name]}"), name)
