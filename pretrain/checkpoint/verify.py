"""Finding the newest valid checkpoint: all ranks hash its files, each a share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from pretrain.checkpoint.folder import Found, find_broken_file, newest_valid, step_of
from pretrain.engine.base import Engine

T = TypeVar("T")
WAIT = 5.0
"""Seconds after which a rank that works tells the others, who wait for it, that it is alive."""


def find_valid(engine: Engine, folder: Path, at_most: int | None = None) -> Found:
    """The newest checkpoint in a folder whose files are what its manifest says. Called on all ranks together.

    Rank 0 looks at the sizes of all files; the ranks share the hashing, so that it takes as long as reading does.

    Args:
        at_most: the last step that is wanted; newer ones are passed over in silence.
    """
    broken: list[str] = []
    rank, ranks = engine.world.rank, engine.world.size
    limit = at_most
    while True:
        path, passed = engine.broadcast(
            newest_valid(folder, limit, hashed=False) if rank == 0 else (None, [])
        )
        broken += passed
        if path is None:
            return Found(None, broken)
        candidate = Path(path)
        look = partial(find_broken_file, candidate, True, rank, ranks)
        faults = engine.gather(on_all_ranks_for_long(engine, look))
        fault = next((fault for fault in faults if fault), None)
        if fault is None:
            return Found(candidate, broken)
        broken.append(f"{candidate.name}/{fault}")
        limit = step_of(candidate) - 1


def on_all_ranks_for_long(engine: Engine, work: Callable[[], T]) -> T:
    """What `work` returns on this rank, once it has ended on all, however long that takes. On all ranks together."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        while engine.sum(torch.tensor([len(wait([future], WAIT).not_done)], dtype=torch.int64)).item():
            pass
        return future.result()
