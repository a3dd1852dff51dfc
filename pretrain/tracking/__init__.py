"""Following a run: `metrics.jsonl` is the truth; W&B, the progress display, pictures and the report derive from it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pretrain.tracking.config import TrackingConfig, WandbConfig
from pretrain.tracking.environment import describe_environment
from pretrain.tracking.metrics import MetricsFile
from pretrain.tracking.pictures import ImageGrid, Picture, save_picture, text_html
from pretrain.tracking.progress import ProgressDisplay
from pretrain.tracking.wandb import WandbLogger

__all__ = ["Tracker", "TrackingConfig", "WandbConfig"]

SPAN_CSS = {
    "given": "color:#1f2430",
    "right": "background:#cdeee0;color:#00583f",
    "wrong": "background:#fbdcc9;color:#8f3400;text-decoration:line-through",
    "truth": "background:#e4e9f2;color:#3d4d6b",
    "generated": "background:#d7e8f8;color:#004a7f",
}


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
        self.metrics = MetricsFile(run_dir)
        environment = json.dumps(describe_environment(), indent=1)
        (run_dir / "environment.json").write_text(environment, encoding="utf-8")
        name = str(resolved_config.get("name", run_dir.name))
        self.wandb = WandbLogger(run_dir, config.wandb, run_id, name, resolved_config)
        self.display = ProgressDisplay(total_steps, resumed_at) if config.progress else None
        self.event("start", resumed_at, {"total_steps": total_steps})

    def train(self, step: int, values: dict[str, Any]) -> None:
        """Numbers of a training step."""
        if self.enabled:
            self.write("train", step, values)
            self.wandb.log(step, {key if "/" in key else f"train/{key}": v for key, v in values.items()})
            if self.display:
                self.display.train(step, values)

    def probe(self, step: int, values: dict[str, Any]) -> None:
        """Accuracies of a probe, in [0, 1]."""
        if self.enabled:
            self.write("probe", step, values)
            self.wandb.log(step, {f"probe/{key}": value for key, value in values.items()})
            if self.display:
                self.display.probe(step, values)

    def validation(self, step: int, values: dict[str, Any]) -> None:
        """The held-out loss, and what else was measured on the same samples."""
        if self.enabled:
            self.write("validation", step, values)
            self.wandb.log(step, {f"validation/{key}": value for key, value in values.items()})
            if self.display:
                self.display.validation(step, values)

    def picture(self, step: int, picture: Picture) -> None:
        """Save a picture into the run's folder and show it on W&B."""
        if not self.enabled:
            return
        path = save_picture(picture, self.run_dir, step)
        self.write("picture", step, {"path": path.relative_to(self.run_dir).as_posix()})
        if isinstance(picture, ImageGrid):
            self.wandb.image(step, path)
        else:
            self.wandb.html(step, text_html(picture, SPAN_CSS.__getitem__))

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Anything else worth a line: `resume`, `end`, …"""
        if self.enabled:
            self.write(kind, step, values)

    def close(self, status: str) -> None:
        """The run is over; `status` other than `finished` marks it as failed on W&B."""
        if self.enabled:
            self.metrics.close()
            if self.display:
                self.display.close()
            self.wandb.close(failed=status != "finished")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.metrics.write({"kind": kind, "step": step, "time": time.time(), **values})
