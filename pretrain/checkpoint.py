"""Checkpoints: saved whole or not at all, validated before they are trusted, resumed on any world size.

Tensors are the engine's business (`Engine.save`: torch's DCP, which reshards on load, or DeepSpeed's own format). A
checkpoint is a folder that gets its final name last, by one rename, after everything in it has been written,
checksummed and fsynced; so any folder named `step_########` was complete once, and its manifest tells whether it
still is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from data_tools.errors import UserError
from pretrain.config import CheckpointConfig
from pretrain.engine.base import Engine

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be written, where the run goes on all the same."""

    step: int
    reason: str


@dataclass
class Pending:
    """A checkpoint that a thread of its own is writing."""

    step: int
    partial: Path
    thread: threading.Thread | None = None
    fault: str | None = None


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, engine: Engine, config: CheckpointConfig) -> None:
        self.folder = folder
        self.engine = engine
        self.config = config
        self.pending: Pending | None = None

    @property
    def lead(self) -> bool:
        return self.engine.world.rank == 0

    def save(self, step: int, progress: dict[str, Any]) -> Failure | None:
        """Write the state after `step` steps, in the background where that is set. Called on all ranks together.

        Args:
            progress: what is not a tensor: the stream's state, versions. JSON-able, the same on all ranks.
        Returns:
            What has failed by now, this checkpoint or the one before it, where the run is to go on all the same.
        Raises:
            UserError: it could not be written (a full disk, no permission); those before it are as they were.
        """
        failure = self.finish()
        pending = self.pending = Pending(step, self.folder / f".step_{step:08d}.partial")
        fault = self.attempt(lambda: make_anew(pending.partial)) if self.lead else None
        pending.fault = self.engine.broadcast(fault)
        writers: list[Callable[[], None]] = []
        if pending.fault is None:
            pending.fault = self.on_any_rank(
                self.attempt(lambda: writers.append(self.engine.start_saving(pending.partial)))
            )
        if pending.fault is None:
            work = threading.Thread(
                target=self.write, args=(pending, writers[0], {"step": step, **progress}), daemon=True
            )
            pending.thread = work
            work.start()
        if self.config.asynchronous and pending.fault is None:
            return failure
        return self.finish() or failure

    def write(self, pending: Pending, write: Callable[[], None], progress: dict[str, Any]) -> None:
        """What the thread does: this rank's files, and on rank 0 the rest, for DCP ends there when all have written."""
        pending.fault = self.attempt(write)
        if self.lead and pending.fault is None:
            final = self.folder / f"step_{pending.step:08d}"
            pending.fault = self.attempt(lambda: self.publish(pending.partial, final, progress))

    def finish(self) -> Failure | None:
        """Wait for the checkpoint that is being written, if there is one. Called on all ranks together.

        Returns, raises: as `save`.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return None
        if pending.thread:
            pending.thread.join()
        fault = self.engine.broadcast(pending.fault) or self.on_any_rank(pending.fault)
        if fault is None:
            return None
        if self.lead:
            shutil.rmtree(pending.partial, ignore_errors=True)
        final = self.folder / f"step_{pending.step:08d}"
        message = f"{final}: the checkpoint could not be written ({fault})"
        if self.config.on_failure == "stop":
            raise UserError(f"{message}; make room and start again, or set checkpoint.on_failure=warn")
        return Failure(pending.step, message)

    @staticmethod
    def attempt(write: Callable[[], object]) -> str | None:
        """What went wrong on this rank, if anything: the others must hear of it before anybody waits for this one."""
        try:
            write()
        except (OSError, RuntimeError, CheckpointException) as error:
            return root_cause(error)
        return None

    def on_any_rank(self, fault: str | None) -> str | None:
        """A fault of this rank, or that there is one elsewhere."""
        if self.engine.sum(torch.tensor([fault is not None], dtype=torch.int64)).item() == 0:
            return None
        return fault or "on another rank"

    def publish(self, partial: Path, final: Path, progress: dict[str, Any]) -> None:
        """Give a checkpoint that all ranks have written its final name, at once, and delete what it replaces."""
        (partial / "progress.json").write_text(json.dumps(progress))
        seal(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync(self.folder)
        self.forget_old()

    def forget_old(self) -> None:
        """Delete all but the newest `keep` and the permanent ones; the newest has just been written and checksummed."""
        every = self.config.permanent_every
        rolling = [path for path in complete(self.folder) if not every or step_of(path) % every]
        for old in rolling[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)
        for partial in self.folder.glob(".step_*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def resume(self, at_most: int | None = None) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest valid checkpoint into the engine. Called on all ranks together.

        Args:
            at_most: the last step that is wanted; a newer checkpoint is passed over.
        Returns:
            Its progress (None: there is no checkpoint yet), and a line for every broken one that was passed over.
        Raises:
            UserError: there are checkpoints, and none of them is valid.
        """
        path, broken = self.engine.on_lead(lambda: newest_valid(self.folder, at_most))
        if path is None:
            if broken:
                raise UserError(
                    f"{self.folder}: no valid checkpoint: {'; '.join(broken)}; delete them to start over"
                )
            return None, []
        self.engine.load(path)
        return json.loads((path / "progress.json").read_text()), broken


def make_anew(folder: Path) -> None:
    """An empty folder of that name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def root_cause(error: BaseException) -> str:
    """The one line at the bottom of an error: DCP gathers those of all ranks, each with a stack."""
    if isinstance(error, CheckpointException) and error.failures:
        return root_cause(next(iter(error.failures.values()))[0])
    if error.__cause__ is not None:
        return root_cause(error.__cause__)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


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
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{checkpoint.name}/{MANIFEST} cannot be read ({type(error).__name__})"
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{checkpoint.name}/{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{checkpoint.name}/{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if digest(path) != expected["sha256"]:
            return f"{checkpoint.name}/{name} has another checksum than when it was saved"
    return None


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
