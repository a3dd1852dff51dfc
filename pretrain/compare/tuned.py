"""What all weights reach when they are fine-tuned on few labels, from pretrained ones and from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from data_tools.errors import UserError
from pretrain.compare.jobs import Jobs, read_spent
from pretrain.compare.options import Options
from pretrain.compare.plan import Pace
from pretrain.compare.samples import Samples
from pretrain.compare.table import Way

LADDER = (50, 200, 800, 3200)
"""Budgets in steps, from which each row takes the one that is best for it on the samples that choose."""
RECIPES = {"image": "digits", "text": "sotu"}
"""Of `finetune`, of demo size, by modality."""
SHIFT = 14
"""Images are moved by at most one part in so many."""
WITHOUT_DECAY = "scratch={optimizer: {layer_decay: null}}"
"""Layer-wise decay suits pretrained weights only (README): from scratch goes without, and is the fairer control."""


class Tuning:
    """Fine-tunes encoders on the steps of a ladder, as many of them as the time for one allows."""

    def __init__(self, jobs: Jobs, samples: Samples, options: Options, asked: list[str]) -> None:
        """`asked`: `key=value` of the user."""
        self.jobs, self.samples, self.draws = jobs, samples, options.draws
        self.command = [
            RECIPES[samples.modality], f"data.train={samples.train}", "data.test_samples=1000", "data.group=null",
            "data.label_bins=null", f"data.label={samples.label}", f"protocol.labels_per_class=[{options.shots}]",
            f"protocol.draws={options.draws}", f"seed={options.seed}", "task.pooling=null", WITHOUT_DECAY,
            *([f"task.shift={samples.image.size / SHIFT:.1f}"] if samples.image else []), *asked,
        ]  # fmt: skip
        self.steps: list[int] = []
        """The rungs of the ladder that from scratch has climbed; the others climb the same."""

    def measure_pace(self, encoder: Path) -> Pace:
        """Seconds a step of one draw, what is done beside its steps included, and of a process beside its draws.

        Raises:
            JobFailedError: fine-tuning ended with an error.
        """
        one = ["protocol.draws=1"]
        measured = self.measure("control.pace", encoder, "scratch", LADDER[0], "select", one)
        return Pace(measured["inside"] / LADDER[0], max(0.0, measured["seconds"] - measured["inside"]))

    def least_seconds(self, pace: Pace) -> float:
        """Of one encoder on the lowest rung of the ladder: once to choose, and once to be judged."""
        return 2 * (pace.start + self.draws * LADDER[0] * pace.step)

    def tune(self, name: str, encoder: Path, method: str, seconds: float) -> dict[str, Any]:
        """`{way: a `Way` as a mapping, tried: [steps], longer: whether more than time allowed may be better}`, at the
        number of steps that is best on `select`.

        Args:
            seconds: for this encoder. The lowest rung is taken whatever it costs.
        Raises:
            JobFailedError: fine-tuning ended with an error.
        """
        tried: dict[int, dict[str, Any]] = {}
        for steps in self.steps or LADDER:
            if not self.steps and tried and not fits(tried, steps, seconds):
                break
            tried[steps] = self.measure(name, encoder, method, steps, "select")
        best = max(tried, key=lambda steps: fmean(tried[steps]["draws"]))
        judged = self.measure(name, encoder, method, best, "test")
        select, test, seconds = tried[best]["draws"], judged["draws"], judged["seconds"]
        return {
            "way": asdict(Way(f"fine-tuned, {best} steps", select, test, seconds / len(test))),
            "tried": list(tried),
            "longer": best == max(tried) < LADDER[-1],
        }

    def measure(
        self, name: str, encoder: Path, method: str, steps: int, side: str, how: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Accuracies by draw, the seconds of all, and those inside the process; from the results that are there."""
        job = f"tune_{name}_{steps}_{side}"
        folder = self.jobs.out / "tuned" / job.removeprefix("tune_")
        if not (folder / "finetune.json").exists():
            self.jobs.run(
                job, "finetune",
                [*self.command, f"encoder={encoder}", f"out={folder}", f"data.test={getattr(self.samples, side)}",
                 f"protocol.methods=[{method}]", f"train.steps={steps}", *how],
            )  # fmt: skip
        result = json.loads((folder / "finetune.json").read_text("utf-8"))
        rows = [row for row in result["rows"] if row["method"] == method]
        if not rows:
            raise UserError(f"{folder}: has no result of {method}; remove that folder")
        spent = read_spent(self.jobs.out).get(job, result["seconds"])
        return {"draws": rows[0]["draws"], "seconds": spent, "inside": result["seconds"]}


def fits(tried: dict[int, dict[str, Any]], steps: int, seconds: float) -> bool:
    """Whether so many steps, and once more the best ones, are expected to fit into the time for one."""
    last = max(tried)
    expected = tried[last]["seconds"] * steps / last
    return sum(one["seconds"] for one in tried.values()) + 2 * expected <= seconds
