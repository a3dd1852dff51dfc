"""What all weights reach when they are fine-tuned on few labels, from pretrained ones and from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from pretrain.compare.jobs import Jobs
from pretrain.compare.options import Options
from pretrain.compare.samples import Samples
from pretrain.config.load import override, parse_override

LADDER = (50, 200, 800, 3200)
"""Budgets in steps, from which each row takes the one that is best for it on the samples that choose."""
IMAGES: dict[str, Any] = {
    "task": {"name": "image_classification", "head_init": "probe", "label_smoothing": 0.1, "rotate": 10,
             "scale": [0.9, 1.1]},
    "train": {"global_batch_size": 32, "clip_grad_norm": 1.0},
    "optimizer": {"lr": 2.0e-3, "betas": [0.9, 0.999], "weight_decay": 0.05, "layer_decay": 0.75},
    "schedule": {"name": "cosine", "warmup_ratio": 0.1},
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "task": {"name": "text_classification", "head_init": "probe"},
    "train": {"global_batch_size": 16, "clip_grad_norm": 1.0},
    "optimizer": {"lr": 5.0e-4, "betas": [0.9, 0.999], "weight_decay": 0.01, "layer_decay": 0.9},
    "schedule": {"name": "linear", "warmup_ratio": 0.1},
}
SHIFT = 14
"""Images are moved by at most one part in so many."""
WITHOUT_DECAY = {"optimizer": {"layer_decay": None}}
"""Layer-wise decay suits pretrained weights only (README): from scratch goes without, and is the fairer control."""


def write_recipe(options: Options, samples: Samples, asked: list[str]) -> Path:
    """The recipe of all fine-tuning, with the user's settings (`--set finetune:…`)."""
    values = json.loads(json.dumps(IMAGES if samples.modality == "image" else TEXTS))
    if samples.image:
        values["task"]["shift"] = round(samples.image.size / SHIFT, 1)
    values |= {
        "data": {"train": str(samples.train), "label": options.label},
        "protocol": {"labels_per_class": [options.shots], "draws": options.draws},
        "seed": options.seed,
        "scratch": WITHOUT_DECAY,
    }
    for text in asked:
        values = override(values, *parse_override(text))
    path = options.out / "recipes" / "finetune.yaml"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, yaml.safe_dump(values, sort_keys=False))
    return path


class Tuning:
    """Fine-tunes encoders on the steps of a ladder, as many of them as the time for one allows."""

    def __init__(self, jobs: Jobs, samples: Samples, recipe: Path, seconds: float) -> None:
        self.jobs, self.samples, self.recipe, self.seconds = jobs, samples, recipe, seconds
        self.steps: list[int] = []
        """The rungs of the ladder that from scratch has climbed; the others climb the same."""

    def tune(self, name: str, encoder: Path, method: str) -> dict[str, Any]:
        """The accuracies by draw at the number of steps that is best on `select`.

        Raises:
            JobFailedError: fine-tuning ended with an error.
        """
        tried: dict[int, dict[str, Any]] = {}
        for steps in self.steps or LADDER:
            if not self.steps and tried and not self.fits(tried, steps):
                break
            tried[steps] = self.measure(name, encoder, method, steps, "select")
        self.steps = self.steps or list(tried)
        best = max(tried, key=lambda steps: fmean(tried[steps]["draws"]))
        judged = self.measure(name, encoder, method, best, "test")
        return {
            "steps": best,
            "tried": list(tried),
            "select": tried[best]["draws"],
            "test": judged["draws"],
            "seconds": judged["seconds"] / len(judged["draws"]),
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
                [str(self.recipe), f"encoder={encoder}", f"out={folder}", f"data.test={getattr(self.samples, side)}",
                 f"protocol.methods=[{method}]", f"train.steps={steps}", "data.test_samples=1000"],
            )  # fmt: skip
        result = json.loads((folder / "finetune.json").read_text("utf-8"))
        rows = [row for row in result["rows"] if row["method"] == method]
        if not rows:
            raise UserError(f"{folder}: has no result of {method}; remove that folder")
        return {"draws": rows[0]["draws"], "seconds": result["seconds"]}
