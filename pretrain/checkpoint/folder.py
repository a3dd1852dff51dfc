"""What makes a folder a valid checkpoint, and which of them stay."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_tools.errors import UserError
from data_tools.storage.atomic import fsync, write_atomically
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.pickles import MetadataUnpickler
from pretrain.engine.saving import Files, hash_file

MANIFEST = "manifest.json"
IDENTITY = "run.json"
"""Beside the state, whose it is: the run's id, its resolved configuration, versions."""


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint (None: there is none), and a line for each that had to be passed over for it."""

    path: Path | None
    broken: list[str]


def make_anew(folder: Path) -> None:
    """An empty folder of that name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def step_of(checkpoint: Path | str) -> int:
    """The step that a checkpoint's path or name tells."""
    return int(PurePosixPath(checkpoint).name.removeprefix("step_"))


def is_permanent(checkpoint: Path | str, config: CheckpointConfig) -> bool:
    return bool(config.permanent_every) and step_of(checkpoint) % config.permanent_every == 0


def superseded(names: list[str], config: CheckpointConfig, best: Collection[str | None] = ()) -> list[str]:
    """Those of the checkpoints, named oldest first, that are neither permanent nor the newest `keep`, nor `best`."""
    passing = [name for name in names if not is_permanent(name, config)]
    return [name for name in passing[: -config.keep] if name not in best]


def complete(folder: Path) -> list[Path]:
    """Checkpoints with their final name, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_valid(
    folder: Path, at_most: int | None = None, hashed: bool = True
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are what its manifest says, and what is wrong with the newer ones.

    Args:
        at_most: the last step that is wanted.
        hashed: whether files are read and hashed; else only their sizes are looked at.
    """
    broken: list[str] = []
    for path in reversed(complete(folder)):
        if at_most is not None and step_of(path) > at_most:
            continue
        fault = find_fault(path, hashed)
        if fault is None:
            return path, broken
        broken.append(fault)
    return None, broken


def find_fault(checkpoint: Path, hashed: bool = True) -> str | None:
    """What is wrong with a checkpoint, naming the file; None when it is valid."""
    fault = find_broken_file(checkpoint, hashed)
    return fault and f"{checkpoint.name}/{fault}"


def find_broken_file(checkpoint: Path, hashed: bool = True, rank: int = 0, ranks: int = 1) -> str | None:
    """The first file that is not as the manifest says, and what is wrong with it.

    Args:
        hashed: whether files are read and hashed, too.
        rank, ranks: which share of the files is looked at; the shares have about as many bytes.
    """
    try:
        files = read_manifest((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name in sorted(files, key=lambda name: (-files[name][0], name))[rank::ranks]:
        size, checksum = files[name]
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if hashed and hash_file(path) != checksum:
            return f"{name} has another checksum than when it was saved"
    return None


def read_manifest(text: bytes) -> Files:
    """The files of a checkpoint: name → (bytes, SHA-256).

    Raises:
        ValueError: not a manifest, or one with names that lead out of the folder.
    """
    try:
        files = {n: (int(f["bytes"]), str(f["sha256"])) for n, f in json.loads(text)["files"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not a manifest") from None
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"names {name!r}, which is not in the folder")
    return files


def seal(folder: Path, written: Sequence[Files] = ()) -> None:
    """Write the manifest of everything in `folder`, and make all of it durable.

    Args:
        written: the files that each rank has written, hashed and made durable, by rank; others are hashed here.
    Raises:
        UserError: a file that a rank has written, or that DCP's metadata name, is not here as it was written.
    """
    files: Files = {}
    for rank, own in enumerate(written):
        for name, (size, checksum) in own.items():
            refuse_elsewhere(folder, name, size, f"which rank {rank} has written with {size} bytes,")
            files[name] = size, checksum
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            files[name] = path.stat().st_size, hash_file(path)
            fsync(path)
    for name in sorted(named_files(folder) - files.keys()) if written else ():
        refuse_elsewhere(folder, name, None, "which the checkpoint's metadata name,")
    entries = {name: {"bytes": size, "sha256": checksum} for name, (size, checksum) in sorted(files.items())}
    write_atomically(folder / MANIFEST, json.dumps({"files": entries}, indent=1))
    fsync(folder)


def refuse_elsewhere(folder: Path, name: str, size: int | None, whose: str) -> None:
    """Raise a `UserError` where a file is not in `folder`, or not of that size (None: of any)."""
    path = folder / name
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        raise UserError(
            f"{name}, {whose} is not so in {folder} on {socket.gethostname()}: the ranks do not share this folder; set "
            "run_dir to one that all hosts see"
        )


def named_files(checkpoint: Path) -> set[str]:
    """The files that the metadata of DCP name as those of tensors."""
    path = checkpoint / ".metadata"
    if not path.is_file():
        return set()
    stored = MetadataUnpickler(io.BytesIO(path.read_bytes())).load().storage_data or {}
    return {info.relative_path for info in stored.values()}
