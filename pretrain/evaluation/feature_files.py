"""Rows of features as files that other tools read: Parquet, NumPy's npz, CSV. The same rows give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError

KINDS: dict[type, str] = {bool: "bool", int: "int64", float: "float64", str: "str"}
"""Types of a label column, by the type of its values."""


@dataclass
class Rows:
    """Some samples: where they stand in the data set, their keys, labels by column, and features.

    ``features``: (D,) a sample, or (N, D) where tokens are kept; N may differ.
    """

    index: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    features: list[NDArray[np.float32]] = field(default_factory=list)


def to_parquet(rows: Rows, kinds: dict[str, str], dim: int, tokens: bool) -> bytes:
    """Columns `index`, `key`, the labels (null where there is none) and `embedding`, or `tokens`, of fixed width.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            '--format parquet: pyarrow is not installed; pip install "masquerade[parquet]", or take npz or csv'
        ) from None
    vector = pa.list_(pa.float32(), dim)
    flat = np.concatenate(rows.features).ravel() if rows.features else np.zeros(0, np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), type=vector)
    if tokens:
        ends = np.cumsum([0, *map(len, rows.features)])
        vectors = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), vectors)
    types = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "str": pa.string()}
    columns = {
        "index": pa.array(rows.index, pa.int64()),
        "key": pa.array(rows.keys, pa.string()),
        **{name: pa.array(rows.labels[name], types[kind]) for name, kind in kinds.items()},
        "tokens" if tokens else "embedding": vectors,
    }
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def to_npz(rows: Rows, kinds: dict[str, str], dim: int, tokens: bool) -> bytes:
    """Arrays `index`, `key`, each label with a mask `<label>.valid`, and `embedding` (B, D).

    Where tokens are kept: `tokens` (all of them, D), of which sample i has [`offsets`[i], `offsets`[i + 1]).
    """
    arrays: dict[str, Any] = {
        "index": np.array(rows.index, np.int64),
        "key": np.array(rows.keys, str),
    }
    for name, kind in kinds.items():
        valid = [value is not None for value in rows.labels[name]]
        filled = [value if value is not None else np.dtype(kind).type() for value in rows.labels[name]]
        arrays[name] = np.array(filled, kind)
        arrays[f"{name}.valid"] = np.array(valid, bool)
    if tokens:
        arrays["offsets"] = np.cumsum([0, *map(len, rows.features)], dtype=np.int64)
        arrays["tokens"] = np.concatenate([np.zeros((0, dim), np.float32), *rows.features])
    else:
        arrays["embedding"] = np.array(rows.features, np.float32).reshape(-1, dim)
    target = io.BytesIO()
    np.savez(target, allow_pickle=False, **arrays)
    return target.getvalue()


def to_csv(rows: Rows, kinds: dict[str, str], dim: int, tokens: bool) -> bytes:
    """A line of names, then a line a sample: index, key, labels (empty where there is none), and D numbers.

    Numbers have the digits that give the same float32 back. Tokens do not fit a table.
    """
    assert not tokens, "refused where options are read"
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["index", "key", *kinds, *(f"e{i}" for i in range(dim))])
    for number, (index, key) in enumerate(zip(rows.index, rows.keys, strict=True)):
        labels = [rows.labels[name][number] for name in kinds]
        writer.writerow([index, key, *labels, *map(str, rows.features[number])])
    return target.getvalue().encode("utf-8", "backslashreplace")


FORMATS: dict[str, Callable[[Rows, dict[str, str], int, bool], bytes]] = {
    "parquet": to_parquet,
    "npz": to_npz,
    "csv": to_csv,
}
"""By the ending of their files."""
