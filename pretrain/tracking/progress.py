"""What a person at the terminal sees: a progress bar, or plain aligned lines where output is not a terminal."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressDisplay:
    """Tells of a run's progress on `stream`."""

    def __init__(self, total_steps: int, start: int = 0, stream: IO[str] | None = None) -> None:
        self.total_steps = total_steps
        self.start = start
        self.started = time.perf_counter()
        self.stream = stream or sys.stdout
        self.bar: Progress | None = None
        if self.stream.isatty():
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[news]}"),
            )
            self.bar = Progress(*columns, console=Console(file=self.stream), refresh_per_second=4)
            self.task = self.bar.add_task("", total=total_steps, completed=start, news="")
            self.bar.start()

    def train(self, step: int, values: dict[str, Any]) -> None:
        """One logged step."""
        parts = [f"{name} {number(value)}" for name, value in values.items() if name.split("/")[-1] == "loss"]
        if "lr" in values and not self.bar:
            parts.append(f"lr {values['lr']:.2e}")
        if "samples_per_second" in values:
            parts.append(f"{values['samples_per_second']:>6,.0f} samples/s")
        parts.append(f"ETA {self.remaining(step)}")
        if self.bar:
            self.bar.update(self.task, completed=step, news="  ".join(parts))
        else:
            self.line(step, "  ".join(parts))

    def probe(self, step: int, values: dict[str, Any]) -> None:
        """Accuracies of a probe."""
        parts = [
            f"{name} {100 * value:.1f}"
            + (f" ± {100 * sd:.1f} %" if (sd := values.get(f"{name}_sd")) else " %")
            for name, value in values.items()
            if isinstance(value, float) and not name.endswith("_sd")
        ]
        self.line(step, "probe: " + "  ".join(parts))

    def validation(self, step: int, values: dict[str, Any]) -> None:
        """A held-out loss."""
        self.line(step, "held out: " + "  ".join(f"{name} {number(v).strip()}" for name, v in values.items()))

    def representation(self, step: int, values: dict[str, Any]) -> None:
        """Measures of the features without labels, each beside its bound and the start of the run."""
        self.line(step, "features: " + "  ".join(describe_measures(values, compared=step > 0)))

    def line(self, step: int, text: str) -> None:
        """One line of its own, above the bar if there is one."""
        width = len(str(self.total_steps))
        text = f"step {step:>{width}}/{self.total_steps}  {text}"
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def remaining(self, step: int) -> str:
        """Time to the last step at the mean speed since the start, as h:mm:ss."""
        done = step - self.start
        if done <= 0:
            return "-"
        return clock((time.perf_counter() - self.started) / done * (self.total_steps - step))

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def describe_measures(values: dict[str, Any], compared: bool) -> list[str]:
    """`rankme 23.1 of 96 (start 11.2)` of every measure of the features; the start only where it is `compared`."""
    parts = []
    for name in (n for n in values if not n.endswith(("_bound", "_start"))):
        bound, start = values.get(f"{name}_bound"), values.get(f"{name}_start")
        of = "" if bound is None or bound == 1 else f" of {bound:g}"
        before = f" (start {start:.3g})" if compared and start is not None else ""
        parts.append(f"{name} {values[name]:.3g}{of}{before}")
    return parts


def number(value: float) -> str:
    """Four digits that line up under each other for usual losses."""
    size = abs(value)
    return f"{value:7.4f}" if size == 0 or 1e-3 <= size < 1e3 else f"{value:.3e}"


def clock(seconds: float) -> str:
    """`0:01:23`; days are hours."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
