"""Copies of a run's checkpoints on other storage, made in the background, and the way back from there."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from data_tools.errors import UserError
from data_tools.storage.objects import Retry, redacted
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.failures import Failure, root_cause
from pretrain.checkpoint.folder import (
    IDENTITY,
    Found,
    complete,
    is_permanent,
    newest_valid,
    step_of,
    superseded,
)
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.verify import WAIT, find_valid
from pretrain.config.sections import Config
from pretrain.config.show import to_dict
from pretrain.engine.base import Engine
from pretrain.run.folder import RunFolder, refuse_other_config
from pretrain.run.shared_folder import refuse_unshared
from pretrain.tracking.environment import installed_versions, redact, redact_text

T = TypeVar("T")
log = logging.getLogger(__name__)
READ_ONLY = ("http://", "https://")


class Target:
    """One storage place, to which a thread of its own copies checkpoints one after the other."""

    def __init__(self, store: Store, config: CheckpointConfig) -> None:
        self.store = store
        self.config = config
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        """Alive as long as there is something to copy."""
        self.copying: Path | None = None
        self.waiting: list[Path] = []
        self.best: str | None = None
        self.best_here: str | None = None
        """The best checkpoint of the run, and the last such one that has arrived."""
        self.failures: list[Failure] = []
        self.given_up = False

    def add(self, checkpoint: Path, best: str | None = None) -> None:
        """Copy this one too, before long. An older one that still waits is passed over, unless it is permanent or best.

        Args:
            best: the name of the best checkpoint so far.
        """
        with self.lock:
            if self.given_up:
                return
            self.best = best
            if not is_permanent(checkpoint, self.config):
                self.waiting = [p for p in self.waiting if is_permanent(p, self.config) or p.name == best]
            self.waiting.append(checkpoint)
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self.work, daemon=True, name=f"copy to {self.store.place}"
                )
                self.thread.start()

    def work(self) -> None:
        while (checkpoint := self.take()) is not None:
            try:
                self.store.upload(checkpoint)
                self.forget_old()
            except Exception as error:  # each storage library has errors of its own
                self.fail(checkpoint, error)

    def take(self) -> Path | None:
        with self.lock:
            self.copying = self.waiting.pop(0) if self.waiting else None
            if self.copying is None:
                self.thread = None
            return self.copying

    def fail(self, checkpoint: Path, error: Exception) -> None:
        reason = f"{self.store.place}: {checkpoint.name} could not be copied there ({redact_text(root_cause(error))})"
        with self.lock:
            self.failures.append(Failure(step_of(checkpoint), reason))
            if self.config.on_failure == "stop":  # the run ends as soon as it hears of this: no more patience
                self.given_up = True
                self.waiting.clear()

    def forget_old(self) -> None:
        """Delete there what the rule deletes here, and what an interrupted copy has left."""
        names = self.store.names()
        complete = [name for name in names if self.store.is_complete(name)]
        leftovers = [name for name in names if name not in complete and name < complete[-1]]
        with self.lock:
            self.best_here = self.best if self.best in complete else self.best_here
            best = [self.best, self.best_here]
        for name in [*superseded(complete, self.config, best), *leftovers]:
            self.store.forget(name)

    def held(self) -> set[str]:
        """Names of the checkpoints that are still to be read."""
        with self.lock:
            return {path.name for path in (*self.waiting, self.copying) if path is not None}

    def busy(self, seconds: float) -> bool:
        """Whether copies are under way, having waited for their end so long."""
        thread = self.thread
        if thread is None:
            return False
        thread.join(seconds)
        return thread.is_alive()

    def take_failures(self) -> list[Failure]:
        with self.lock:
            failures, self.failures = self.failures, []
            return failures


class Copies:
    """All targets of a run."""

    def __init__(self, config: CheckpointConfig) -> None:
        """Raises UserError: a target that nothing installed can write to."""
        retry = Retry(patience=config.target_patience)
        for url in config.targets:
            if url.startswith(READ_ONLY):
                raise UserError(
                    f"checkpoint.targets: {redacted(url)}: http cannot be written to; name a store"
                )
        self.targets = [Target(Store(url, retry), config) for url in config.targets]

    def add(self, checkpoint: Path, best: str | None = None) -> None:
        for target in self.targets:
            target.add(checkpoint, best)

    def held(self) -> set[str]:
        return {name for target in self.targets for name in target.held()}

    def busy(self, seconds: float) -> bool:
        return any(target.busy(seconds) for target in self.targets)

    def take_failures(self) -> list[Failure]:
        return [failure for target in self.targets for failure in target.take_failures()]


def open_run(
    engine: Engine, folder: RunFolder, config: Config, copies: Copies, allowed: tuple[str, ...] = ()
) -> tuple[str, Found]:
    """Open a run's folder, with the newest valid checkpoint in it, wherever that was. Called on all ranks together.

    Args:
        allowed: settings and sections that may be others than before.
    Returns:
        The run's id, which a folder that was lost gets back with its checkpoint, and what to resume from.
    Raises:
        UserError: the folder or a target is another run's, or the run's checkpoints are out of reach, or there are
            ranks that do not see the folder.
    """
    run_id: str = engine.on_main_process(lambda: folder.open(config, allowed))
    refuse_unshared(engine, folder.path)
    own = find_valid(engine, folder.path / "checkpoints")
    return on_main_process_for_long(
        engine, lambda: look_on_targets(folder, config, copies, run_id, own, allowed)
    )


def look_on_targets(
    folder: RunFolder, config: Config, copies: Copies, run_id: str, own: Found, allowed: tuple[str, ...]
) -> tuple[str, Found]:
    """Where a target has a newer checkpoint than the folder's `own`, copy that. Returns, raises: as `open_run`."""
    checkpoints = folder.path / "checkpoints"
    started = bool(complete(checkpoints))

    def accept(place: str, identity: dict[str, Any]) -> None:
        remedy = "choose another target (checkpoint.targets)"
        if "config" in identity:
            refuse_other_config(place, identity["config"], redact(to_dict(config)), remedy, allowed)
        other = identity.get("id", run_id)
        if started and other != run_id:
            raise UserError(f"{place}: holds checkpoints of the run {other}, not {run_id}; {remedy}")

    stores = [target.store for target in copies.targets]
    found = find_newest(checkpoints, stores, accept, config.checkpoint.on_failure == "stop", own)
    if found.path and not started and (found.path / IDENTITY).is_file():
        run_id = folder.take_id(json.loads((found.path / IDENTITY).read_text())["id"])
    return run_id, found


def on_main_process_for_long(engine: Engine, work: Callable[[], T]) -> T:
    """As `engine.on_main_process`, for work that may take longer than ranks wait for each other."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work) if engine.world.rank == 0 else None
        while engine.broadcast(bool(future and wait([future], WAIT).not_done)):
            pass
        result: T = engine.on_main_process(lambda: future.result() if future else None)
        return result


def identity_of(run_id: str, config: Config) -> dict[str, Any]:
    """What each checkpoint says of its run."""
    return {"id": run_id, "config": redact(to_dict(config)), "versions": installed_versions()}


def find_newest(
    folder: Path,
    stores: list[Store],
    accept: Callable[[str, dict[str, Any]], None],
    strict: bool,
    found: Found | None = None,
) -> Found:
    """The newest valid checkpoint of a folder and all stores, in the folder; a newer one is copied there.

    Args:
        accept: given a store's place and what the newest checkpoint there says of its run; raises if it is not ours.
        strict: whether a store out of reach is an error, where there is no checkpoint anywhere else.
        found: the newest valid one of the folder, where it has been looked for already.
    """
    own, broken = (found.path, list(found.broken)) if found else newest_valid(folder)
    candidates: list[tuple[str, Store]] = []
    out_of_reach = []
    for store in stores:
        try:
            names = store.complete()
            identity = read_identity(store, names[-1]) if names else {}
        except (OSError, UserError) as error:
            out_of_reach.append(redact_text(str(error)))
            continue
        accept(store.place, identity)
        candidates += [(name, store) for name in names if own is None or name > own.name]
    for name, store in sorted(candidates, key=lambda candidate: candidate[0], reverse=True):
        try:
            own = store.download(name, folder)
            break
        except (OSError, UserError) as error:
            broken.append(redact_text(str(error)))
    if own or broken or not out_of_reach:
        return Found(own, broken + out_of_reach)
    if strict:
        raise UserError(
            f"{'; '.join(out_of_reach)}: checkpoints of this run may be there, and none is in {folder}; start again "
            "when it answers, or set checkpoint.on_failure=warn to start without it"
        )
    for line in out_of_reach:
        log.warning("%s; the run starts without it", line)
    return Found(None, [])


def read_identity(store: Store, name: str) -> dict[str, Any]:
    """What a checkpoint says of its run; nothing where that cannot be read, for then it is not valid either."""
    try:
        identity = json.loads(store.read(f"{name}/{IDENTITY}") or b"{}")
    except ValueError:
        return {}
    return identity if isinstance(identity, dict) else {}


def refuse_checkpoints(config: Config) -> None:
    """Raise a `UserError` where a run that is to start anew has checkpoints already, here or on a target."""
    places = [str(config.folder)] if complete(config.folder / "checkpoints") else []
    places += [t.store.place for t in Copies(config.checkpoint).targets if t.store.complete()]
    if places:
        raise UserError(
            f"{', '.join(places)}: holds checkpoints; choose another run_dir and other targets, or leave out "
            "--resume never"
        )
