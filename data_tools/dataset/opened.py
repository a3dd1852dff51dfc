"""The data set that many jobs are about: opened once in each process, not once for each of its shards."""

from __future__ import annotations

from functools import lru_cache

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.storage.objects import redacted
from data_tools.storage.segments import FetchOptions


@lru_cache(maxsize=2)
def open_once(source: str, fingerprint: str, options: DecodeOptions, fetching: FetchOptions) -> Dataset:
    """The data set whose ``fingerprint`` the one has that was cut into jobs; raises UserError when it is another."""
    dataset = open_dataset(source, options, fetching)
    if dataset.fingerprint != fingerprint:
        raise UserError(f"{redacted(source)}: has changed since the jobs were made; start again")
    return dataset
