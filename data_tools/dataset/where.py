"""The samples for which an expression holds."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.expression import Expression, parse_expression
from data_tools.dataset.rows import (
    MAX_NAMES,
    Found,
    check_columns,
    locate_all,
    look_at_all,
    read_index_row,
    read_rows,
)
from data_tools.errors import UserError


class Where(NamedTuple):
    """``indices`` of the samples for which an expression holds, ascending; ``unread`` samples were damaged."""

    indices: NDArray[np.int64]
    unread: int


def find_where(dataset: Dataset, expression: str, processes: int | None = None) -> Where:
    """Ask every sample; what the index knows (shard, size, length) costs no reading of shards.

    Damaged and marked samples are left out.

    Raises:
        UserError: it is not an expression, names a column that no sample has, or holds for no sample.
    """
    parsed = parse_expression(expression)
    found = look_at_all(dataset, partial(_ask, parsed), "select", processes)
    check_columns(parsed, dataset, set().union(*(part["names"] for part in found)))
    indices = np.setdiff1d(np.concatenate([part["indices"] for part in found]), dataset.marked)
    if not len(indices):
        raise UserError(f"{expression}: holds for none of {len(dataset):,} samples")
    return Where(indices, sum(part["unread"] for part in found))


def _ask(expression: Expression, dataset: Dataset, first: int, last: int) -> Found:
    if expression.reads_samples:
        rows = read_rows(dataset, [expression], first, last)
    else:
        located = locate_all(dataset, first, last)
        rows = ((index, read_index_row(dataset, shard, number)) for index, shard, number in located)
    indices, seen = [], 0
    names: set[str] = set()
    for index, row in rows:
        seen += 1
        if isinstance(row.get("json"), dict) and len(names) < MAX_NAMES:
            names.update(row["json"])
        if expression(row):
            indices.append(index)
    return {"indices": np.array(indices, dtype=np.int64), "names": names, "unread": last - first - seen}
