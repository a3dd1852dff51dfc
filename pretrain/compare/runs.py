"""The pretraining runs of a comparison: their recipes, how fast they are, and training one to a step."""

from __future__ import annotations

import copy
import fcntl
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from data_tools.storage.atomic import write_atomically
from pretrain.compare.candidates import Candidate
from pretrain.compare.jobs import Jobs
from pretrain.compare.plan import Pace
from pretrain.config.load import build_config
from pretrain.tracking.metrics import read_metrics

WARMUP = 0.1
"""Share of the first rung's steps in which the learning rate rises."""
AVERAGED = 0.1
"""Share of the first rung's steps that the average of weights reaches back over."""
QUIET: dict[str, Any] = {
    "wandb": {"mode": "disabled"}, "picture_every": 0, "report": False, "count_flops": False,
}  # fmt: skip
MEASURED = 12
"""Steps that show how fast a candidate is; the first half allocates, compiles and fills queues, and does not count."""
PATIENCE = 60.0
"""Seconds for a run that somebody has just killed to save and end."""


def settings_of_run(candidate: Candidate, folder: Path, steps: int, first: int, seed: int) -> dict[str, Any]:
    """All settings of a candidate's run, which stops after rungs of whatever length and goes on.

    Every rung must end as fairly as every other. A learning rate that falls over the whole run would favour those that
    are far in it, and one that falls at the end of each rung would have to be taken back for the next. So it stays
    constant after the warm-up, and an average of the newest weights takes the part of its fall (Hägele et al. 2024,
    arXiv:2405.18392): that is what is probed and fine-tuned.

    Args:
        first: steps of the first rung.
    """
    values = copy.deepcopy(candidate.values)
    train = {k: v for k, v in values.get("train", {}).items() if k != "epochs"}
    values["train"] = {**train, "steps": steps}
    if not uses_schedule_free(values):  # which averages by itself
        values["train"].setdefault("ema_decay", round(1 - 1 / max(2.0, AVERAGED * first), 4))
    values["schedule"] = {"name": "constant", "warmup_steps": max(1, round(WARMUP * first))}
    values["tracking"] = {**values.get("tracking", {}), **QUIET}
    values["representation"] = {**values.get("representation", {}), "pictures": False}
    values["checkpoint"] = {"keep": 1, "every": max(10, first // 2)}
    return {**values, "seed": seed, "run_dir": str(folder)}


def uses_schedule_free(values: dict[str, Any]) -> bool:
    optimizers = [values.get("optimizer", {}), *(values.get("optimizer_overrides") or {}).values()]
    return any(optimizer.get("name") == "schedule_free" for optimizer in optimizers)


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    write_atomically(path, yaml.safe_dump(values, sort_keys=False))
    return path


def measure_pace(jobs: Jobs, candidate: Candidate, seed: int) -> Pace:
    """Take some steps in a run of their own.

    Raises:
        JobFailedError: they could not be taken.
    """
    folder, name = jobs.out / "measured" / candidate.name, f"measure_{candidate.name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a measurement that was stopped
    values = settings_of_run(candidate, folder, MEASURED, MEASURED, seed)
    values["tracking"]["log_every"] = MEASURED // 2
    values["representation"]["every"] = MEASURED
    seconds = jobs.run(name, "pretrain", [str(write_recipe(jobs.out / "recipes" / f"{name}.yaml", values))])
    last = [line for line in read_metrics(folder) if line["kind"] == "train"][-1]
    step = build_config(values).train.global_batch_size / last["samples_per_second"]
    return Pace(step, max(0.0, seconds - MEASURED * step))


def train_to(jobs: Jobs, name: str, step: int, rung: int) -> Path:
    """Train a candidate's run until it has taken so many steps; its folder.

    Raises:
        JobFailedError: the run ended with an error.
    """
    folder = jobs.out / "runs" / name
    wait_until_free(folder)
    recipe = jobs.out / "recipes" / f"{name}.yaml"
    jobs.run(f"train_{name}_{rung}", "pretrain", [str(recipe), "--stop-at", str(step)])
    return folder


def wait_until_free(folder: Path) -> None:
    """Wait for a run whose comparison was killed: it is told to end then, and saves first."""
    deadline = time.monotonic() + PATIENCE
    while (folder / "lock").exists() and time.monotonic() < deadline:
        with (folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.2)


def find_collapse(folder: Path) -> list[str]:
    """What the run's own looks at its features have warned of last."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [f"collapse: {line['reason']}" for line in read_metrics(folder) if line["kind"] == "collapse"][-1:]
