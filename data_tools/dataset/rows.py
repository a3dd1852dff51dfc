"""Samples as rows of columns, for expressions and for whatever else looks at all of them once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.expression import COLUMNS, Expression
from data_tools.decode.kinds import field_names
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.text import decode_json, decode_label
from data_tools.errors import UserError
from data_tools.jobs import Receipt, run_jobs

CHUNK = 4096
"""Samples of one job."""
FEW_BYTES = 256 << 20
"""Data below this are read faster than processes start."""
MAX_NAMES = 10_000
"""JSON fields that are remembered, to name the nearest of them."""

Found = dict[str, Any]
Look = Callable[[Dataset, int, int], Found]
"""(data set, first index, last index + 1) → what is found there; it goes to other processes."""


def look_at_all(dataset: Dataset, look: Look, title: str, processes: int | None = None) -> list[Found]:
    """What ``look`` finds in every stretch of a data set, in its order; on all cores unless the data are small."""
    stretches = [(first, min(first + CHUNK, len(dataset))) for first in range(0, len(dataset), CHUNK)]
    few = len(dataset) * dataset.sample_bytes < FEW_BYTES
    raw = dataset.with_options(DecodeOptions(raw=True))
    cores = 1 if few and processes is None else processes
    found = run_jobs(partial(_look, raw, look), stretches, title, None, cores, quiet=few)
    assert found is not None, "all parts ran here"
    return found


def _look(dataset: Dataset, look: Look, stretch: Sequence[int]) -> Receipt:
    samples = stretch[1] - stretch[0]
    dataset.store.copy_sidecars(np.unique(dataset.locate(np.arange(*stretch))[0]).tolist())
    return {**look(dataset, *stretch), "samples": samples, "bytes": int(samples * dataset.sample_bytes)}


def read_rows(
    dataset: Dataset, expressions: Sequence[Expression], first: int, last: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, row) of the samples ``first`` ≤ index < ``last`` of a data set of raw samples, damaged ones left out.

    A row has ``key``, ``members`` (extension → bytes), what the index knows, and the columns that the expressions
    name. A label or JSON that does not parse is damage.
    """
    wanted = {column.split(".")[0] for expression in expressions for column in expression.columns}
    classes = dataset.manifest.about.get("classes") or []
    for index, shard, number in locate_all(dataset, first, last):
        try:
            row = read_index_row(dataset, shard, number)
            raw = dataset.read(shard, number)
            row["key"] = raw.pop("__key__")
            row["members"] = raw
            names = {name: extension for extension, name in field_names(tuple(raw)).items()}
            if "json" in wanted and "json" in names:
                row["json"] = decode_json(raw[names["json"]], "json", dataset.options)
            if wanted & {"label", "class_name"} and "label" in names:
                label = row["label"] = decode_label(raw[names["label"]])
                if label is not None and label < len(classes):
                    row["class_name"] = str(classes[label])
        except (DamagedSampleError, DecodeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            continue
        yield index, row


def locate_all(dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """(index, shard, number in the shard) of the samples ``first`` ≤ index < ``last``."""
    indices = np.arange(first, last)
    shards, numbers = dataset.locate(indices)
    return zip(indices.tolist(), shards.tolist(), numbers.tolist(), strict=True)


def read_index_row(dataset: Dataset, shard: int, number: int) -> dict[str, Any]:
    """What the index knows of a sample: ``shard``, ``size``, and ``length`` where it has one."""
    sidecar, row = dataset.sidecar(shard), dataset.row(shard, number)
    return {
        "shard": dataset.manifest.urls[shard].rsplit("/", 1)[-1],
        "size": int(sidecar.size[row]),
        "length": None if sidecar.length is None else int(sidecar.length[row]),
    }


def check_columns(expression: Expression, dataset: Dataset, names: set[str]) -> None:
    """Raise UserError where an expression names a column that no sample has; ``names``: the JSON fields there are."""
    fields = dataset.fields
    known = {*COLUMNS, *names}
    lacking = {
        "label": "label" in fields,
        "class_name": "label" in fields and bool(dataset.manifest.about.get("classes")),
        "length": dataset.manifest.has_length,
    }
    known -= {name for name, there in lacking.items() if not there}
    for column in expression.columns:
        name = column.removeprefix("json.").split(".")[0]
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known)[:12])}"
        raise UserError(f"{expression.text}: no sample has a column {column.removeprefix('json.')}; {meant}")
