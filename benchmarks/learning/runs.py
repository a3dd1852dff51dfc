"""Starting `pretrain` and `finetune` as a user would, once: what is finished is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

QUIET = ("tracking.wandb.mode=disabled", "tracking.picture_every=0", "tracking.report=false",
         "tracking.count_flops=false", "probe.every=0", "representation.every=0",
         "representation.pictures=false")  # fmt: skip
"""A run without what is not asked here."""


def pretrain(recipe: str, folder: Path, settings: list[str]) -> Path:
    """The folder of a run that has come to its end."""
    if not (folder / "finished").exists():
        start("pretrain", [recipe, f"run_dir={folder}", *QUIET, *settings], folder.with_suffix(".log"))
        (folder / "finished").touch()
    return folder


def finetune(recipe: str, encoder: Path, out: Path, settings: list[str]) -> dict[str, list[float]]:
    """The accuracies of each method, by draw."""
    if not (out / "finetune.json").exists():
        start("finetune", [recipe, f"encoder={encoder}", f"out={out}", *settings], out.with_suffix(".log"))
    rows: list[dict[str, Any]] = json.loads((out / "finetune.json").read_text("utf-8"))["rows"]
    return {row["method"]: row["draws"] for row in rows}


def start(package: str, arguments: list[str], log: Path) -> None:
    """Run a command to its end; raises a SystemExit that says what it printed last where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"  {package} {log.stem}", file=sys.stderr, flush=True)
    with log.open("w") as out:
        status = subprocess.call([sys.executable, "-m", package, *arguments], stdout=out, stderr=out)
    if status:
        raise SystemExit(f"python -m {package} {' '.join(arguments)}\n{log.read_text('utf-8')[-2000:]}")


def describe(draws: list[float]) -> str:
    """Mean and deviation in per cent."""
    mean = fmean(draws)
    sd = (sum((x - mean) ** 2 for x in draws) / max(1, len(draws) - 1)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * sd:.1f}"
