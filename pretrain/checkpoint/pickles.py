"""Torch's checkpoint format has pickles in it, which could run code: those from elsewhere are looked at first.

`.metadata` is one, and so is whatever is not a tensor (a learning rate, betas). Torch reads both without restriction.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from data_tools.errors import UserError

CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
}  # fmt: skip
"""All that DCP's metadata are made of, by module."""


class MetadataUnpickler(pickle.Unpickler):
    """Knows only what DCP's metadata are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def refuse_code(checkpoint: Path, place: str, parts: tuple[str, ...] = ("",)) -> None:
    """Raise a `UserError` naming `place` where the DCP part of a checkpoint holds anything but tensors and values.

    DeepSpeed's own files, beside it, are read by DeepSpeed alone and not looked at.

    Args:
        parts: how the names begin that are going to be read; by default, all.
    """
    try:
        for path in checkpoint.glob("*.metadata"):  # DCP knows one for all ranks and one for each
            check_values(checkpoint, MetadataUnpickler(io.BytesIO(path.read_bytes())).load(), parts)
    except Exception as error:  # a hostile pickle may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{place} holds what is not a tensor or a value, and could run code ({reason})"
        ) from None


def check_values(checkpoint: Path, metadata: Metadata, parts: tuple[str, ...]) -> None:
    """Read what is not a tensor as torch reads weights from strangers; raises what torch raises."""
    for index, stored in metadata.storage_data.items():
        if not index.fqn.startswith(parts):
            continue
        if (
            ".." in PurePosixPath(stored.relative_path).parts
            or PurePosixPath(stored.relative_path).is_absolute()
        ):
            raise ValueError(f"{stored.relative_path} is not in the checkpoint")
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            with (checkpoint / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
