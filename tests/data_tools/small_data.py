"""Small data sets made on the spot."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.order.packing import WINDOW, Rows, plan_rows


def png(number: int, side: int = 8) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_images(folder: Path, samples: int = 60, per_shard: int = 20) -> Path:
    """A data set of ``samples`` tiny images with json, in shards of ``per_shard``."""
    writer = ShardWriter(folder, max_samples=per_shard)
    for i in range(samples):
        writer.write(f"{i:06d}", {"png": png(i), "json": json.dumps({"number": i}).encode()})
    finish_dataset(writer)
    return folder


def write_tokens(folder: Path, lengths: list[int], per_shard: int = 50, with_length: bool = True) -> Path:
    """Documents of the given lengths; the tokens of document i are 1000 * i, 1000 * i + 1, …"""
    writer = ShardWriter(folder, max_samples=per_shard, with_length=with_length)
    for i, length in enumerate(lengths):
        tokens = np.arange(length, dtype=np.uint32) + 1000 * i
        writer.write(f"doc{i:05d}", {"tokens.npy": npy(tokens)}, length if with_length else None)
    finish_dataset(writer)
    return folder


def best_fit_rows(lengths: np.ndarray, length: int, window: int = WINDOW) -> Rows:
    """All rows by best fit over windows of consecutive documents."""
    plan = plan_rows([lengths], "best_fit", length, window)
    return plan.take(np.arange(plan.rows))


def cut_rows(lengths: np.ndarray, length: int) -> Rows:
    """All rows of the documents one after another, cut every ``length`` tokens."""
    plan = plan_rows([lengths], "cut", length)
    return plan.take(np.arange(plan.rows))
