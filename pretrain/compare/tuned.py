"""What all weights reach when they are fine-tuned on few labels, from pretrained ones and from scratch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from data_tools.errors import UserError
from pretrain.compare.jobs import Jobs
from pretrain.compare.options import Options
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

    def __init__(
        self, jobs: Jobs, samples: Samples, options: Options, asked: list[str], seconds: float
    ) -> None:
        """`asked`: `key=value` of the user; `seconds`: for each encoder."""
        self.jobs, self.samples, self.seconds = jobs, samples, seconds
        self.command = [
            RECIPES[samples.modality], f"data.train={samples.train}", "data.test_samples=1000", "data.group=null",
            "data.label_bins=null", f"data.label={samples.label}", f"protocol.labels_per_class=[{options.shots}]",
            f"protocol.draws={options.draws}", f"seed={options.seed}", "task.pooling=null", WITHOUT_DECAY,
            *([f"task.shift={samples.image.size / SHIFT:.1f}"] if samples.image else []), *asked,
        ]  # fmt: skip
        self.steps: list[int] = []
        """The rungs of the ladder that from scratch has climbed; the others climb the same."""

    def tune(self, name: str, encoder: Path, method: str) -> dict[str, Any]:
        """`{way: a `Way` as a mapping, tried: [steps]}` at the number of steps that is best on `select`.

        Raises:
            JobFailedError: fine-tuning ended with an error.
        """
        tried: dict[int, dict[str, Any]] = {}
        for steps in self.steps or LADDER:
            if not self.steps and tried and not self.fits(tried, steps):
                break
            tried[steps] = self.measure(name, encoder, method, steps, "select")
        best = max(tried, key=lambda steps: fmean(tried[steps]["draws"]))
        judged = self.measure(name, encoder, method, best, "test")
        select, test, seconds = tried[best]["draws"], judged["draws"], judged["seconds"]
        return {
            "way": asdict(Way(f"fine-tuned, {best} steps", select, test, seconds / len(test))),
            "tried": list(tried),
        }

    def fits(self, tried: dict[int, dict[str, Any]], steps: int) -> bool:
        """Whether so many steps, and once more the best ones, are expected to fit into the time for one."""
        last = max(tried)
        expected = tried[last]["seconds"] * steps / last
        return sum(one["seconds"] for one in tried.values()) + 2 * expected <= self.seconds

    def measure(self, name: str, encoder: Path, method: str, steps: int, side: str) -> dict[str, Any]:
        """Accuracies by draw, and the seconds of all; from the results that are there, if they are."""
        folder = self.jobs.out / "tuned" / f"{name}_{steps}_{side}"
        if not (folder / "finetune.json").exists():
            self.jobs.run(
                f"tune_{name}_{steps}_{side}", "finetune",
                [*self.command, f"encoder={encoder}", f"out={folder}", f"data.test={getattr(self.samples, side)}",
                 f"protocol.methods=[{method}]", f"train.steps={steps}"],
            )  # fmt: skip
        result = json.loads((folder / "finetune.json").read_text("utf-8"))
        rows = [row for row in result["rows"] if row["method"] == method]
        if not rows:
            raise UserError(f"{folder}: has no result of {method}; remove that folder")
        return {"draws": rows[0]["draws"], "seconds": result["seconds"]}
