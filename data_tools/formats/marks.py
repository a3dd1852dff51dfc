"""Samples that ``verify`` found bad: kept beside the manifest, apart from the sidecars that fix the order.

``marks-<crc>.jsonl`` holds one object a line: ``shard`` (its number in the manifest), ``row`` (in the sidecar),
``url``, ``sample`` (its key, or ``#row``) and ``reason``. The manifest names it. A marked sample keeps its position,
and another stands in there, so that a run goes on in the same order after its data were verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from data_tools.errors import UserError

MARKS_FILES = "marks-*.jsonl"


class Mark(NamedTuple):
    """One bad sample: ``row`` of the sidecar of shard number ``shard``; ``sample`` is its key, or ``#row``."""

    shard: int
    row: int
    url: str
    sample: str
    reason: str


Marks = dict[int, dict[int, Mark]]
"""By shard, by row."""


def marks_to_bytes(marks: Iterable[Mark]) -> bytes:
    lines = (json.dumps(mark._asdict()) + "\n" for mark in sorted(marks))
    return "".join(lines).encode("utf-8", "replace")


def parse_marks(data: bytes, place: str) -> Marks:
    """The content of such a file; raises UserError, naming the place, when it is none."""
    marks: Marks = {}
    try:
        for line in data.splitlines():
            mark = Mark(**json.loads(line))
            marks.setdefault(mark.shard, {})[mark.row] = mark
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{place}: not a list of marks ({error}); run `python -m data_tools verify`"
        ) from None
    return marks
