"""Whether all ranks see one run folder: where they do not, checkpoints would lack what the others write."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from pretrain.engine.base import Engine

PATIENCE = 15.0
"""Seconds after which a network disk must show on one host what another one has written."""


def refuse_unshared(engine: Engine, folder: Path, patience: float = PATIENCE) -> None:
    """Raise a `UserError` on every rank where some do not see what rank 0 writes in `folder`. On all ranks together."""
    if engine.world.size == 1:
        return
    name = engine.broadcast(f".seen-by-all-{secrets.token_hex(8)}")
    mark = folder / name
    engine.on_main_process(lambda: write_atomically(mark, name))
    found = engine.gather((socket.gethostname(), str(folder.absolute()), sees(mark, patience)))
    if engine.world.rank == 0:
        mark.unlink(missing_ok=True)
    host, place, _ = found[0]
    blind = [f"rank {rank} on {h} (its {p})" for rank, (h, p, seen) in enumerate(found) if not seen]
    if blind:
        raise UserError(
            f"run_dir: {', '.join(blind)} does not see what rank 0 on {host} writes to {place}; set run_dir to an "
            "absolute path on a disk that all hosts share"
        )


def sees(mark: Path, patience: float) -> bool:
    """Whether the file is there with its name in it, before long."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(OSError):
            for parent in (mark.parent.parent, mark.parent):
                list(parent.iterdir())  # makes a network disk ask its server again
            if mark.read_text(encoding="utf-8") == mark.name:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
