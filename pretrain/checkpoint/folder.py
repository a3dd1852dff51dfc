"""What makes a folder a valid checkpoint, and which of them stay."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pretrain.checkpoint.config import CheckpointConfig

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


def superseded(names: list[str], config: CheckpointConfig) -> list[str]:
    """Those of the checkpoints, named oldest first, that are neither permanent nor among the newest `keep`."""
    return [name for name in names if not is_permanent(name, config)][: -config.keep]


def complete(folder: Path) -> list[Path]:
    """Checkpoints with their final name, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_valid(folder: Path, at_most: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are what its manifest says, and what is wrong with the newer ones."""
    broken: list[str] = []
    for path in reversed(complete(folder)):
        if at_most is not None and step_of(path) > at_most:
            continue
        fault = find_fault(path)
        if fault is None:
            return path, broken
        broken.append(fault)
    return None, broken


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None when it is valid."""
    fault = find_broken_file(checkpoint)
    return fault and f"{checkpoint.name}/{fault}"


def find_broken_file(checkpoint: Path) -> str | None:
    try:
        files = read_manifest((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name, (size, checksum) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if digest(path) != checksum:
            return f"{name} has another checksum than when it was saved"
    return None


def read_manifest(text: bytes) -> dict[str, tuple[int, str]]:
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


def seal(folder: Path) -> None:
    """Write the manifest of everything in `folder`, and make all of it durable."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest(path)}
        fsync(path)
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    fsync(folder / MANIFEST)
    fsync(folder)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
