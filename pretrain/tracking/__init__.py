"""Following a run: `metrics.jsonl` is the truth; W&B, the progress display, pictures and the report derive from it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from data_tools.storage.atomic import write_atomically
from pretrain.tracking.config import TrackingConfig, WandbConfig
from pretrain.tracking.environment import describe_environment
from pretrain.tracking.metrics import MetricsFile, read_metrics, told_from
from pretrain.tracking.pictures import Picture, save_picture
from pretrain.tracking.progress import ProgressDisplay
from pretrain.tracking.wandb import WandbLogger

__all__ = ["Tracker", "TrackingConfig", "WandbConfig"]

LEARNED = ("seed", "data", "encoder", "objective", "train", "optimizer", "optimizer_overrides", "schedule")
"""Sections of the configuration that decide what is learned."""


class Tracker:
    """What rank 0 tells of a run. The other ranks make none, or one with `enabled=False` that does nothing."""

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        resolved_config: dict[str, Any],
        total_steps: int,
        run_id: str,
        resumed_at: int,
        enabled: bool = True,
    ) -> None:
        self.run_dir = run_dir
        self.enabled = enabled
        if not enabled:
            return
        settings = digest_settings(resolved_config)
        self.told = find_told(run_dir, resumed_at, settings)
        """What W&B has from an earlier start of the same training, and need not be told twice."""
        self.metrics = MetricsFile(run_dir)
        environment = json.dumps(describe_environment(), indent=1)
        write_atomically(run_dir / "environment.json", environment)
        name = str(resolved_config.get("name", run_dir.name))
        self.wandb = WandbLogger(run_dir, config.wandb, run_id, name, resolved_config)
        self.display = ProgressDisplay(total_steps, resumed_at) if config.progress else None
        self.event("start", resumed_at, {"total_steps": total_steps, "settings": settings})

    def train(self, step: int, values: dict[str, Any]) -> None:
        """Numbers of a training step."""
        if self.enabled:
            self.write("train", step, values)
            if ("train", step) not in self.told:
                self.wandb.log(step, {key if "/" in key else f"train/{key}": v for key, v in values.items()})
            if self.display:
                self.display.train(step, values)

    def probe(self, step: int, values: dict[str, Any]) -> None:
        """Accuracies of a probe, in [0, 1]."""
        if self.enabled:
            self.evaluation("probe", step, values)
            if self.display:
                self.display.probe(step, values)

    def validation(self, step: int, values: dict[str, Any]) -> None:
        """The held-out loss, and what else was measured on the same samples."""
        if self.enabled:
            self.evaluation("validation", step, values)
            if self.display:
                self.display.validation(step, values)

    def representation(self, step: int, values: dict[str, Any]) -> None:
        """How good the features are without labels, each with its bound and what it was at the start."""
        if self.enabled:
            self.evaluation("representation", step, values)
            if self.display:
                self.display.representation(step, values)

    def evaluation(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write what was measured beside training, and hand its numbers to W&B."""
        self.write(kind, step, values)
        if (kind, step) not in self.told:
            numbers = {key: value for key, value in values.items() if not isinstance(value, (str, dict))}
            self.wandb.log(step, {f"{kind}/{key}": value for key, value in numbers.items()})

    def picture(self, step: int, picture: Picture, name: str = "") -> None:
        """Save a picture into the run's folder and show it on W&B; one without a name is the objective's own."""
        if not self.enabled:
            return
        path, kind = save_picture(picture, self.run_dir, step, name), f"picture/{name}" if name else "picture"
        self.write(kind, step, {"path": path.relative_to(self.run_dir).as_posix()})
        if (kind, step) in self.told:
            return
        picture.show_on_wandb(self.wandb, step, path, kind)

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Anything else worth a line: `resume`, `end`, …"""
        if self.enabled:
            self.write(kind, step, values)

    def close(self, status: str) -> None:
        """The run is over: `finished`, `preempted` (it will go on) or `failed`, as W&B then says too."""
        if self.enabled:
            self.metrics.close()
            if self.display:
                self.display.close()
            self.wandb.close(status)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.metrics.write({"kind": kind, "step": step, "time": time.time(), **values})


def digest_settings(config: dict[str, Any]) -> str:
    """What identifies the settings that decide what is learned."""
    learned = {section: config.get(section) for section in LEARNED}
    if isinstance(data := learned["data"], dict):
        learned["data"] = {key: value for key, value in data.items() if key != "storage"}
    text = json.dumps(learned, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def find_told(run_dir: Path, resumed_at: int, settings: str) -> set[tuple[str, int]]:
    """(kind, step) of what an earlier start told from the step on where this one goes on.

    Nothing where it had other settings (a run rescued by another learning rate): it then tells something new.
    """
    starts = [line for line in read_metrics(run_dir) if line["kind"] == "start"]
    if not starts or max(starts, key=lambda line: line.get("time", 0.0)).get("settings") != settings:
        return set()
    return told_from(run_dir, resumed_at)
