"""The weights in a checkpoint, read by one process alone, whichever engine wrote them on however many ranks."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from pretrain.checkpoint.pickles import refuse_code
from pretrain.engine.saving import without_advice

Shape = tuple[int, ...]
PARTS = ("roles.", "averages.")


def open_reader(checkpoint: Path) -> FileSystemReader:
    """A reader of the weights in a checkpoint, which may be anybody's.

    Raises:
        UserError: it holds what could run code.
    """
    refuse_code(checkpoint, str(checkpoint), PARTS)
    return FileSystemReader(checkpoint)


def saved_shapes(checkpoint: Path) -> dict[str, Shape]:
    """The shape of every tensor of the roles, under `<role>.<name>`."""
    entries = open_reader(checkpoint).read_metadata().state_dict_metadata
    roles = {name: entry for name, entry in entries.items() if name.startswith("roles.")}
    return {name.removeprefix("roles."): tuple(getattr(e, "size", ())) for name, e in roles.items()}


def read_weights(checkpoint: Path, roles: dict[str, dict[str, Tensor]]) -> None:
    """Fill the tensors of `roles` (by role and name), all of which the checkpoint must hold.

    Where it keeps averaged weights, those are taken: they are what a run is judged by and releases.
    """
    reader = open_reader(checkpoint)
    saved = reader.read_metadata().state_dict_metadata
    state: dict[str, dict[str, dict[str, Tensor]]] = {}
    for role, tensors in roles.items():
        for name, tensor in tensors.items():
            part = "averages" if f"averages.{role}.{name}" in saved else "roles"
            state.setdefault(part, {}).setdefault(role, {})[name] = tensor
    with without_advice():
        dcp.load(state, storage_reader=reader, no_dist=True)
