"""How far a fine-tuning job is, and how long it will take."""

from __future__ import annotations

import time
from typing import Any

from pretrain.tracking.pictures import Picture
from pretrain.tracking.progress import ProgressDisplay, clock


class TrainingProgress:
    """Shows the loss and the time left of one training run; keeps no record."""

    def __init__(self, steps: int) -> None:
        self.display = ProgressDisplay(steps)

    def train(self, step: int, values: dict[str, Any]) -> None:
        self.display.train(step, values)

    def probe(self, step: int, values: dict[str, Any]) -> None: ...

    def validation(self, step: int, values: dict[str, Any]) -> None: ...

    def representation(self, step: int, values: dict[str, Any]) -> None: ...

    def picture(self, step: int, picture: Picture, name: str = "") -> None: ...

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self, status: str) -> None:
        self.display.close()


class TimeLeft:
    """The time that is left of many pieces of work, each of a size that is known before."""

    def __init__(self, total: float) -> None:
        """`total`: the sum of all sizes, in any unit (steps)."""
        self.started, self.total, self.done = time.perf_counter(), total, 0.0

    def add(self, size: float) -> str:
        """A piece is done: `0:12:34 left`, at the mean speed until now."""
        self.done += size
        seconds = (time.perf_counter() - self.started) * (self.total - self.done) / self.done
        return f"{clock(max(0.0, seconds))} left"
