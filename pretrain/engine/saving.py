"""What one rank writes of a checkpoint, as `torch.distributed.checkpoint` (DCP), hashed while it is written."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor

from data_tools.storage.atomic import full_disk_explained

Files = dict[str, tuple[int, str]]
"""Files by their names in a folder: bytes and SHA-256, of the stdlib's hashes the fastest where processors help."""
KEYS = itertools.count()


class Planner(DefaultSavePlanner):
    """Plans that are made and exchanged once: afterwards ranks only say that nothing has changed."""

    def __init__(self, key: str) -> None:
        """Args: key: under which this process keeps the plans; a new one starts anew."""
        super().__init__(enable_plan_caching=True)
        self._cached_plans_key = key


class HashedFile:
    """A file that is only appended to, and hashed meanwhile."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self.file = file
        self.count = count
        self.hash = hashlib.sha256(usedforsecurity=False)
        self.size = 0
        self.error: OSError | None = None
        """What the system said; torch's own writer makes `enforce fail` of it."""

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        self.size += written
        self.count(written)
        return written

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.error = error
            raise

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.flush()


class HashingFileSystem(FileSystem):
    """DCP's files, whose sizes and hashes are known as soon as they are written."""

    def __init__(self, needed: int, count: Callable[[int], None]) -> None:
        self.files: Files = {}
        self.needed = needed
        self.count = count

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with full_disk_explained(Path(path), self.needed), Path(path).open(mode) as file:
            stream = HashedFile(file, self.count)
            try:
                yield stream
            except Exception:
                if stream.error:
                    raise stream.error from None
                raise
        self.files[Path(path).name] = stream.size, stream.hash.hexdigest()

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.files[Path(new_path).name] = self.files.pop(Path(path).name)


def save_state(
    state: dict[str, Any],
    folder: Path,
    alone: bool,
    group: dist.ProcessGroup | None = None,
    plans: str | None = None,
    needed: int = 0,
    count: Callable[[int], None] = lambda _: None,
) -> Files:
    """Write a state as DCP, on all ranks of the group together; return the files that this rank has written, fsynced.

    Args:
        plans: the key under which this process keeps its plans.
        needed: bytes of the whole checkpoint, for the message on a full disk.
        count: told the bytes of every write.
    Raises:
        OSError, CheckpointException: it could not be written, on this rank or another one.
    """
    writer = FileSystemWriter(folder)
    writer.fs = files = HashingFileSystem(needed, count)
    planner = Planner(plans or new_key())
    with without_advice():
        dcp.save(state, storage_writer=writer, planner=planner, no_dist=alone, process_group=group)
    return files.files


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, as manifests tell it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(usedforsecurity=False)).hexdigest()


def new_key() -> str:
    """A key that no plans of this process have been kept under."""
    return f"plans {next(KEYS)}"


def own_share(state: Mapping[str, Any], rank: int, size: int) -> dict[str, Any]:
    """What this rank has to write of a nested state, so that every byte is written by one rank.

    Tensors that all ranks hold are dealt out by size; of shards that several replicas hold (HSDP) one replica each
    keeps its own; rank 0 keeps what is not a tensor. All ranks come to the same division without a word.
    """
    whole, replicated = [0] * size, [0] * size

    def is_own(value: Any) -> bool:
        if not isinstance(value, Tensor):
            return rank == 0
        nbytes = value.numel() * value.element_size()
        if isinstance(value, DTensor):
            replica, replicas = place_among_replicas(value)
            return take_least(replicated[:replicas], replicated, nbytes) == replica
        return take_least(whole, whole, nbytes) == rank

    def share(part: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in part.items():
            if isinstance(value, Mapping) and value:
                inner = share(value)
                if inner:
                    kept[name] = inner
            elif is_own(value):
                kept[name] = value
        return kept

    return share(state)


def take_least(loads: list[int], counted: list[int], nbytes: int) -> int:
    """The place with the least to write so far, to which `nbytes` are added in `counted`."""
    place = loads.index(min(loads))
    counted[place] += nbytes
    return place


def place_among_replicas(tensor: DTensor) -> tuple[int, int]:
    """Which replica of its shard this rank holds, and how many there are."""
    mesh = tensor.device_mesh
    coordinate: Any = mesh.get_coordinate() or ()
    axes = [i for i, placement in enumerate(tensor.placements) if placement.is_replicate()]
    place = 0
    for i in axes:
        place = place * mesh.size(i) + coordinate[i]
    return place, prod(mesh.size(i) for i in axes)


def tensors_of(state: Mapping[str, Any]) -> Iterator[Tensor]:
    """All tensors of a nested state; the sizes of one that is spread over ranks are those of the whole."""
    for value in state.values():
        if isinstance(value, Mapping):
            yield from tensors_of(value)
        elif isinstance(value, Tensor):
            yield value


def count_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of all tensors of a nested state, as `tensors_of` sees them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))


@contextmanager
def without_advice() -> Iterator[None]:
    """DCP remarks on every single process that it is alone; it is meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
