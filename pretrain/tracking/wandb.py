"""Weights & Biases, kept at arm's length: a thread of its own talks to it, training never waits for or dies from it."""

from __future__ import annotations

import logging
import netrc
import os
import queue
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pretrain.guards.preemption import REQUEUE
from pretrain.tracking.config import WandbConfig
from pretrain.tracking.environment import redact

logger = logging.getLogger(__name__)

QUEUE_SIZE = 10_000  # messages that may wait for a slow W&B before newer ones are dropped
INIT_SECONDS = (
    15.0  # W&B must answer within; else the run is kept offline. Well below CLOSE_SECONDS: see close()
)
CLOSE_SECONDS = 30.0  # the most that the end of a run waits for W&B
STEP = "step"


class WandbLogger:
    """Hands metrics and pictures to a W&B run, whose id is given so that a resumed run goes on as the same one."""

    def __init__(
        self, run_dir: Path, config: WandbConfig, run_id: str, name: str, resolved_config: dict[str, Any]
    ) -> None:
        self.config = config
        self.mode = resolve_mode(config)
        self.run_dir = run_dir
        self.arguments: dict[str, Any] = {
            "id": run_id,
            "name": name,
            "project": config.project,
            "entity": config.entity,
            "tags": list(config.tags),
            "config": redact(resolved_config),
            "dir": str(run_dir),
            "resume": "allow",
        }
        self.warned = False
        self.inbox: queue.Queue[tuple[str, Any] | None] = queue.Queue(QUEUE_SIZE)
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        if self.mode != "disabled":
            if config.mode == "online" and self.mode == "offline":
                self.warn(
                    "tracking.wandb.mode=online but no key (set WANDB_API_KEY or run `wandb login`): offline"
                )
            (run_dir / "wandb").mkdir(parents=True, exist_ok=True)
            self.thread.start()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Hand over numbers of a step; returns at once."""
        self.put("log", {STEP: step, **values})

    def image(self, step: int, path: Path, name: str) -> None:
        """Hand over a picture file; returns at once."""
        self.put("image", (step, path, name))

    def html(self, step: int, html: str, name: str) -> None:
        """Hand over a fragment of HTML; returns at once."""
        self.put("html", (step, html, name))

    def close(self, status: str = "finished") -> None:
        """Finish the run, waiting at most `CLOSE_SECONDS`; what W&B could not take is still in the run's folder.

        `status` is what W&B then says of it: `finished`, `preempted` (it will go on), or `failed`.
        A short run in an outage may end before its start has timed out: the wait then covers the turn to offline.
        """
        if not self.thread.is_alive():
            return
        self.put("finish", status)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.warn("W&B has not finished uploading; `wandb sync` does it from the run's folder")

    def put(self, kind: str, content: Any) -> None:
        if not self.thread.is_alive():
            return
        try:
            self.inbox.put_nowait((kind, content))
        except queue.Full:
            self.warn("W&B does not keep up; it will miss some lines, metrics.jsonl has them all")

    def warn(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning("%s", message)

    def work(self) -> None:
        """The thread: start the run, then pass on what arrives until told to finish."""
        try:
            run = self.start()
            while (message := self.inbox.get()) is not None:
                kind, content = message
                if kind == "finish":
                    finish(run, content)
                    return
                self.send(run, kind, content)
        except Exception as error:  # W&B may fail in any way at all; training goes on in every one of them
            self.warn(f"W&B stopped ({summary(error)}); training goes on, metrics.jsonl has everything")

    def start(self) -> Any:
        """Start the W&B run; offline when the server does not answer, so that nothing is lost."""
        if self.mode == "online":
            try:
                return self.init("online")
            except Exception as error:  # the client raises many kinds for an outage
                self.warn(
                    f"W&B cannot be reached ({summary(error)}); this run is kept offline in "
                    f"{self.run_dir / 'wandb'}, `wandb sync` uploads it later"
                )
                import wandb

                wandb.teardown()  # its service still holds the run's id and would refuse it a second time
        return self.init("offline")

    def init(self, mode: str) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",  # our output is not captured
            init_timeout=INIT_SECONDS,
            finish_timeout=CLOSE_SECONDS,
            x_graphql_retry_max=2,
            x_disable_meta=True,  # host name, e-mail, raw command line
            x_save_requirements=False,
            disable_git=True,
            save_code=False,
        )
        run = wandb.init(mode=mode, settings=settings, **self.arguments)  # type: ignore[arg-type]
        run.define_metric(STEP)
        # A step may be told twice, by runs that went back: W&B's own counter refuses that, an axis of ours does not.
        run.define_metric("*", step_metric=STEP)
        return run

    def send(self, run: Any, kind: str, content: Any) -> None:
        import wandb

        if kind == "log":
            run.log(content)
        elif kind == "image":
            run.log({STEP: content[0], content[2]: wandb.Image(str(content[1]))})
        elif kind == "html":
            run.log({STEP: content[0], content[2]: wandb.Html(content[1], inject=False)})


def finish(run: Any, status: str) -> None:
    """End the W&B run; one that was announced as preempted and ends with a status other than 0 is not a failed one."""
    if status == "preempted":
        run.mark_preempting()
    run.finish(exit_code={"finished": 0, "preempted": REQUEUE}.get(status, 1))


def resolve_mode(config: WandbConfig) -> str:
    """`online`, `offline` or `disabled`: online only with a key; `WANDB_MODE` decides where our setting is `auto`."""
    asked = os.environ.get("WANDB_MODE", "online") if config.mode == "auto" else config.mode
    if asked in ("disabled", "offline"):
        return asked
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether a key is configured: `WANDB_API_KEY`, or what `wandb login` put into the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def summary(error: Exception) -> str:
    """One short line of an error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
