"""Checkpoints: saved whole or not at all, validated before they are trusted, resumed on any world size.

Tensors are the engine's business (`Engine.save`: torch's DCP, which reshards on load, or DeepSpeed's own format). A
checkpoint is a folder that gets its final name last, by one rename, after everything in it has been written,
checksummed and fsynced; so any folder named `step_########` was complete once, and its manifest tells whether it
still is.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from data_tools.errors import UserError
from data_tools.storage.atomic import fsync, write_atomically
from pretrain.checkpoint.best import HOOK, Best, best_step, name_of
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.failures import Failure, root_cause
from pretrain.checkpoint.folder import (
    IDENTITY,
    Found,
    complete,
    make_anew,
    seal,
    superseded,
)
from pretrain.checkpoint.targets import WAIT, Copies
from pretrain.checkpoint.verify import find_valid
from pretrain.engine.base import Engine
from pretrain.engine.saving import Files

log = logging.getLogger(__name__)


@dataclass
class Pending:
    """A checkpoint that a thread of its own is writing."""

    step: int
    partial: Path
    thread: threading.Thread | None = None
    fault: str | None = "its writing ended without a result"
    """Until it is proven on this rank that all ranks have written."""
    own_part_done: bool = False


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        config: CheckpointConfig,
        copies: Copies | None = None,
        found: Found | None = None,
        identity: dict[str, Any] | None = None,
        best: Best | None = None,
    ) -> None:
        """Those in `folder`, which need not be there yet.

        Args:
            copies: where each is copied to; used on rank 0.
            found: what to resume from, where it has been looked for already.
            identity: whose they are, JSON-able; kept in each.
            best: knows the step that is to stay as the best one.
        """
        self.folder = folder
        self.engine = engine
        self.config = config
        self.copies = copies
        self.found = found
        self.identity = identity
        self.best = best or Best()
        self.published_best: str | None = None
        """The best as the newest written checkpoint tells: that one is surely here."""
        self.pending: Pending | None = None

    @property
    def is_main_process(self) -> bool:
        return self.engine.world.rank == 0

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the state after `step` steps is to be saved: so often, at the end, or since it is the best so far."""
        return step % self.config.every == 0 or step in (total_steps, self.best.step)

    def save(
        self, step: int, progress: dict[str, Any], heartbeat: Callable[[str], None] = lambda _: None
    ) -> list[Failure]:
        """Write the state after `step` steps, in the background where that is set. Called on all ranks together.

        Args:
            progress: what is not a tensor: the stream's state. JSON-able, the same on all ranks.
            heartbeat: told again and again while what is waited for goes on.
        Returns:
            What has failed by now, this checkpoint, the one before it or copies, where the run is to go on all the
            same.
        Raises:
            UserError: it could not be written (a full disk, no permission), or copied; those before it are as they
                were.
        """
        failures = self.finish_writing(heartbeat)
        pending = self.pending = Pending(step, self.folder / f".step_{step:08d}.partial")
        fault = self.attempt(lambda: make_anew(pending.partial)) if self.is_main_process else None
        fault = self.engine.broadcast(fault)
        writers: list[Callable[[], Files]] = []
        if fault is None:
            heartbeat(f"copying the state of step {step}")
            fault = self.on_any_rank(
                self.attempt(lambda: writers.append(self.engine.start_saving(pending.partial)))
            )
        if fault is None:
            work = threading.Thread(
                target=self.write, args=(pending, writers[0], {"step": step, **progress}), daemon=True
            )
            pending.thread = work
            work.start()
        else:
            pending.fault = fault
        if not self.config.asynchronous or fault is not None:
            failures += self.finish_writing(heartbeat)
        return failures + self.failed_copies()

    def write(self, pending: Pending, write: Callable[[], Files], progress: dict[str, Any]) -> None:
        """What the thread does: this rank's files; then, once all ranks have told of theirs, the rest on rank 0."""
        own: Files = {}
        fault = self.attempt(lambda: own.update(write()))
        pending.own_part_done = True
        parts: list[tuple[str | None, Files]] = []
        fault = self.attempt(lambda: parts.extend(self.engine.gather_while_saving((fault, own)))) or fault
        fault = fault or next((f"rank {rank}: {f}" for rank, (f, _) in enumerate(parts) if f), None)
        if fault is None and self.is_main_process:
            final = self.folder / f"step_{pending.step:08d}"
            written = [files for _, files in parts]
            fault = self.attempt(lambda: self.publish(pending.partial, final, progress, written))
        pending.fault = fault

    def finish(self, heartbeat: Callable[[str], None] = lambda _: None) -> list[Failure]:
        """Wait for the checkpoint that is being written and for all copies. Called on all ranks together.

        Args:
            heartbeat: told again and again while copies are waited for.
        Returns, raises: as `save`.
        """
        try:
            failures = self.finish_writing(heartbeat)
        finally:
            while self.engine.broadcast(
                bool(self.is_main_process and self.copies and self.copies.busy(WAIT))
            ):
                heartbeat("waiting for the copies of checkpoints")
        if self.is_main_process and self.config.targets:
            self.attempt(self.forget_old)  # what was kept for its copy
        return failures + self.failed_copies()

    def finish_writing(self, heartbeat: Callable[[str], None] = lambda _: None) -> list[Failure]:
        """Wait for the checkpoint that is being written, if there is one. Returns, raises: as `save`."""
        pending, self.pending = self.pending, None
        if pending is None:
            return []
        if pending.thread:
            self.wait_for_thread(pending, pending.thread, heartbeat)
        fault = self.engine.broadcast(pending.fault) or self.on_any_rank(pending.fault)
        if fault is None:
            return []
        self.engine.forget_failed_saving()
        if self.is_main_process:
            shutil.rmtree(pending.partial, ignore_errors=True)
        final = self.folder / f"step_{pending.step:08d}"
        reason = f"{final}: the checkpoint could not be written ({fault})"
        return self.passed([Failure(pending.step, reason)], "make room and start again")

    def wait_for_thread(
        self, pending: Pending, thread: threading.Thread, heartbeat: Callable[[str], None]
    ) -> None:
        """Until it ends. A disk that takes nothing more is told by the watchdog, since nothing grows then."""
        written = -1
        while thread.is_alive():
            if pending.own_part_done or self.engine.bytes_written > written:
                written = self.engine.bytes_written
                heartbeat(f"waiting for the checkpoint of step {pending.step}")
            thread.join(WAIT)

    def failed_copies(self) -> list[Failure]:
        """Copies that have failed since the last call, known to all ranks. Returns, raises: as `save`."""
        if not self.config.targets:
            return []
        failures = self.engine.broadcast(
            self.copies.take_failures() if self.is_main_process and self.copies else []
        )
        return self.passed(failures, "see to the target and start again")

    def passed(self, failures: list[Failure], remedy: str) -> list[Failure]:
        """The failures, where the run is to go on all the same."""
        if failures and self.config.on_failure == "stop":
            reasons = "; ".join(failure.reason for failure in failures)
            raise UserError(f"{reasons}; {remedy}, or set checkpoint.on_failure=warn")
        return failures

    @staticmethod
    def attempt(write: Callable[[], object]) -> str | None:
        """What went wrong on this rank, if anything: the others must hear of it before anybody waits for this one."""
        try:
            write()
        except Exception as error:
            if not isinstance(error, (OSError, RuntimeError, MemoryError, UserError, CheckpointException)):
                log.warning("a checkpoint could not be written", exc_info=error)  # not the disk's fault
            return root_cause(error)
        return None

    def on_any_rank(self, fault: str | None) -> str | None:
        """A fault of this rank, or that there is one elsewhere."""
        if self.engine.sum(torch.tensor([fault is not None], dtype=torch.int64)).item() == 0:
            return None
        return fault or "on another rank"

    def publish(self, partial: Path, final: Path, progress: dict[str, Any], written: list[Files]) -> None:
        """Give a checkpoint that all ranks have written its final name, at once, and delete what it replaces."""
        write_atomically(partial / "progress.json", json.dumps(progress))
        if self.identity:
            write_atomically(partial / IDENTITY, json.dumps(self.identity))
        seal(partial, written)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync(self.folder)
        self.published_best = name_of(best_step(progress))
        if self.copies:
            self.copies.add(final, self.published_best)
        self.forget_old()

    def forget_old(self) -> None:
        """Delete what a newer one, just written and checksummed, has replaced; not before it has been copied."""
        held = self.copies.held() if self.copies else set()
        names = [path.name for path in complete(self.folder)]
        for name in superseded(names, self.config, [self.published_best]):
            if name not in held:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        for partial in self.folder.glob(".step_*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def find_best(self, progress: dict[str, Any]) -> str | None:
        """The best checkpoint that progress tells of; taken out of it where that is lost, for nothing could beat it."""
        name = name_of(best_step(progress))
        if name is None or (self.folder / name).is_dir():
            return name
        del progress["hooks"][HOOK]
        if self.is_main_process:
            log.warning(
                "%s: the best checkpoint, %s, is not there any more; another will be", self.folder, name
            )
        return None

    def resume(self, at_most: int | None = None) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest valid checkpoint into the engine. Called on all ranks together.

        Args:
            at_most: the last step that is wanted; a newer checkpoint is passed over.
        Returns:
            Its progress (None: there is no checkpoint yet), and a line for every broken one that was passed over.
        Raises:
            UserError: there are checkpoints, and none of them is valid.
        """
        found = self.found or find_valid(self.engine, self.folder, at_most)
        if found.path is None:
            if found.broken:
                raise UserError(
                    f"{self.folder}: no valid checkpoint: {'; '.join(found.broken)}; delete them to start over"
                )
            return None, []
        self.engine.load(found.path)
        progress = json.loads((found.path / "progress.json").read_text())
        self.published_best = self.find_best(progress)
        if self.is_main_process and self.copies:
            for path in complete(self.folder):  # what a target lacks; the copy skips what it has
                if path <= found.path:
                    self.copies.add(path, self.published_best)
        return progress, found.broken
