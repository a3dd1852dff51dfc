"""A data set's samples for which an expression holds, as a data set: manifest and sidecars, no shard copied."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.selection import refuse_full, refuse_signed, whole_or_none, write_selection
from data_tools.dataset.where import find_where
from data_tools.formats.manifest import Manifest


class Selected(NamedTuple):
    """The new manifest, and how many samples could not be asked."""

    manifest: Manifest
    unread: int


def select(dataset: Dataset, expression: str, folder: Path, processes: int | None = None) -> Selected:
    """Write a manifest over the same shards into a new folder; see `Dataset.where`.

    Raises:
        UserError: as `find_where` does, or the folder is not empty.
    """
    refuse_full(folder)
    refuse_signed(dataset)
    found = find_where(dataset, expression, processes)
    with whole_or_none(folder):
        manifest = write_selection(dataset, found.indices, folder, {"where": expression})
    return Selected(manifest, found.unread)
