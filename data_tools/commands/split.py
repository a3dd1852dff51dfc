"""Hold-out by a hash of the key: the same sample falls on the same side in every version of the data."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.selection import refuse_full, write_selection
from data_tools.errors import UserError


def held_out(key: str, fraction: float, salt: str = "") -> bool:
    """Whether a key belongs to the held-out ``fraction``."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "little") < fraction * 2**64


def split(dataset: Dataset, fraction: float, train: Path, test: Path, salt: str = "") -> tuple[int, int]:
    """Write two manifests over the same shards, nothing copied: (samples in train, samples in test).

    Samples that `verify` marked are in neither.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--fraction {fraction}: must lie between 0 and 1")
    for folder in (train, test):
        refuse_full(folder)
    out = np.fromiter((held_out(key, fraction, salt) for key in dataset.keys()), dtype=bool)  # noqa: SIM118
    if out.all() or not out.any():
        raise UserError(
            f"--fraction {fraction}: leaves one side empty with {len(out)} samples; choose another"
        )
    kept = np.ones(len(out), dtype=np.bool_)
    kept[dataset.marked] = False
    try:
        for folder, chosen in ((train, ~out & kept), (test, out & kept)):
            write_selection(dataset, chosen, folder)
    except BaseException:  # a full disk: half of a split is none
        for folder in (train, test):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return int((~out & kept).sum()), int((out & kept).sum())
