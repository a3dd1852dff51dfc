"""A run folder as the trainer leaves it, written through the real tracker with real digits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from data_tools.dataset.open import open_dataset
from pretrain.tracking import Tracker, TrackingConfig, WandbConfig
from pretrain.tracking.metrics import FILE_NAME
from pretrain.tracking.pictures import ImageGrid, Picture, TextExcerpt, TextExcerpts

STEPS = 1000
CONFIG: dict[str, Any] = {
    "name": "mae_digits",
    "seed": 0,
    "data": {"path": "sample:digits"},
    "encoder": {"name": "vit", "image_size": 28, "patch_size": 7, "hidden_size": 128},
    "objective": {"name": "mae", "mask_ratio": 0.75},
    "optimizer": {"lr": 1.5e-3, "betas": [0.9, 0.95]},
    "train": {"steps": STEPS, "global_batch_size": 256},
}


def digits(count: int = 8) -> torch.Tensor:
    """(B, 1, 28, 28) in [0, 1]."""
    dataset = open_dataset("sample:digits")
    images = [torch.from_numpy(np.array(dataset[i]["image"])) for i in range(count)]
    return torch.stack(images).permute(0, 3, 1, 2).float() / 255


def reconstruction(step: int) -> ImageGrid:
    """Digits, three quarters of their patches hidden, and a guess that grows sharper with the steps."""
    original = digits()
    noise = torch.Generator().manual_seed(0)
    hidden = (torch.rand(len(original), 1, 4, 4, generator=noise) < 0.75).float()
    hidden = hidden.repeat_interleave(7, 2).repeat_interleave(7, 3)
    blurred = torch.nn.functional.avg_pool2d(original, 5, stride=1, padding=2)
    skill = step / STEPS
    return ImageGrid(
        {
            "original": original,
            "visible": original.lerp(hidden * 0.5, hidden),
            "reconstruction": original.lerp(blurred * (1 - skill) + original * skill, hidden),
        }
    )


EXCERPTS = TextExcerpts(
    [
        TextExcerpt(
            [
                ("To the Congress of the United ", "given"),
                ("States", "right"),
                (": I have the ", "given"),
                ("honor ", "wrong"),
                ("pleasure", "truth"),
                (" to lay before <you> this year", "given"),
            ]
        ),
        TextExcerpt([("Our foreign relations ", "given"), ("are at peace with all nations.", "generated")]),
    ]
)


def train_values(step: int, noise: np.random.Generator) -> dict[str, float]:
    warm = min(1.0, step / 100)
    return {
        "loss": 0.36 + 0.7 * math.exp(-step / 160) + 0.012 * noise.standard_normal(),
        "grad_norm": 0.4 + 0.6 * math.exp(-step / 60) + 0.05 * noise.random(),
        "lr": 1.5e-3 * warm * 0.5 * (1 + math.cos(math.pi * step / STEPS)),
        "position": 256 * step,
        "epoch": 256 * step // 12000,
        "samples_per_second": 5200 + 260 * noise.standard_normal(),
        "data_wait": 0.02 * noise.random(),
    }


def write_run(
    run_dir: Path, steps: int = STEPS, picture: Picture | None = None, phases: tuple[str, ...] = ()
) -> Path:
    """Write the folder of a run of which `steps` are done; `phases` gives each its own loss."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    settings = TrackingConfig(wandb=WandbConfig(mode="disabled"), progress=False)
    tracker = Tracker(run_dir, settings, CONFIG, STEPS, "abc123", 0)
    noise = np.random.default_rng(0)
    for step in range(0, steps + 1, 10):
        if step:
            values = train_values(step, noise)
            loss = values.pop("loss") if phases else 0
            tracker.train(step, values | {f"{p}/loss": loss * (i + 1) for i, p in enumerate(phases)})
        if step % 200 == 0:
            knowledge = 1 - math.exp(-step / 300)
            tracker.probe(step, {"knn": 0.82 + 0.12 * knowledge, "linear": 0.85 + 0.11 * knowledge})
            tracker.picture(step, picture or reconstruction(step))
    if steps == STEPS:
        tracker.event("end", steps, {"seconds": 52.0})
    tracker.close("finished" if steps == STEPS else "failed")
    space_out_times(run_dir, seconds_per_step=0.05)
    return run_dir


def space_out_times(run_dir: Path, seconds_per_step: float) -> None:
    """The run was written in an instant; give its lines the times of a real one."""
    path = run_dir / FILE_NAME
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["time"] = 1.8e9 + seconds_per_step * line["step"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def finetune_results() -> dict[str, Any]:
    means = {
        "full": (0.86, 0.962), "scratch": (0.71, 0.918), "linear": (0.81, 0.93), "linear_untrained": (0.63, 0.84),
        "knn": (0.78, 0.91), "knn_untrained": (0.6, 0.8), "knn_raw": (0.68, 0.86),
    }  # fmt: skip
    noise = np.random.default_rng(1)
    rows = []
    for method, values in means.items():
        for labels, mean, spread in zip((10, 100), values, (0.024, 0.005), strict=True):
            draws = mean + spread * noise.standard_normal(10)
            row = {"labels_per_class": labels, "method": method, "draws": draws.tolist()}
            rows.append(row | {"mean": float(draws.mean()), "sd": float(draws.std(ddof=1))})
    return {"task": "digits", "metric": "accuracy", "rows": rows, "seconds": 130.0}
