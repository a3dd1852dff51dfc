"""What a run folder says about its run, gathered for the report. Every part may be missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pretrain.report.charts import Curve
from pretrain.tracking.metrics import read_metrics
from pretrain.tracking.progress import clock

NOT_PLOTTED = {"kind", "step", "time", "position", "epoch", "lr", "samples_per_second", "loss"}


@dataclass(frozen=True)
class RunSummary:
    """A run as its folder tells it."""

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def train(self) -> list[dict[str, Any]]:
        return self.of_kind("train")

    @property
    def step(self) -> int:
        """The last step that is known to be done."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def total_steps(self) -> int | None:
        starts = [line["total_steps"] for line in self.of_kind("start") if "total_steps" in line]
        steps = starts[-1] if starts else (self.config.get("train") or {}).get("steps")
        return int(steps) if steps else None

    @property
    def finished(self) -> bool:
        ends = self.of_kind("end")
        return bool(ends) and ends[-1]["step"] >= max((line["step"] for line in self.train), default=0)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Settings that were changed on purpose while it ran: after which step, the key, the values before and now."""
        return [
            {"step": line["step"], "key": key, "before": before, "now": now}
            for line in self.of_kind("changed")
            for key, (before, now) in line.get("changes", {}).items()
        ]

    @property
    def seconds(self) -> float:
        """Time spent running: between lines that follow each other, without the pauses between stop and resume."""
        timed = sorted((line for line in self.lines if "time" in line), key=lambda line: line["time"])
        pairs = pairwise(timed)
        return sum(b["time"] - a["time"] for a, b in pairs if b["kind"] not in ("start", "resume"))

    def names(self, kind: str) -> list[str]:
        """Names of the numbers in lines of a kind, in order of first appearance."""
        found: dict[str, None] = {}
        for line in self.of_kind(kind):
            found |= {key: None for key, value in line.items() if is_number(value)}
        return list(found)

    def curve(self, kind: str, name: str) -> Curve:
        points = [(line["step"], line[name]) for line in self.of_kind(kind) if is_number(line.get(name))]
        return Curve(name, [float(x) for x, _ in points], [float(y) for _, y in points])

    @property
    def losses(self) -> list[str]:
        """`loss`, or one `phase/loss` for each phase."""
        return [name for name in self.names("train") if name.split("/")[-1] == "loss"]

    @property
    def held_out(self) -> list[str]:
        """Losses that were measured on held-out samples, named as in training."""
        return [name for name in self.names("validation") if name.split("/")[-1] == "loss"]

    @property
    def other_measures(self) -> list[str]:
        """Whatever else the objective and the trainer measure, where it changes during the run."""
        names = [n for n in self.names("train") if n not in NOT_PLOTTED and n.split("/")[-1] != "loss"]
        return [name for name in names if len(set(self.curve("train", name).y)) > 1]

    @property
    def probes(self) -> dict[str, tuple[Curve, float | None]]:
        """Probe name → its curve, and the untrained encoder's value (told by the probe, or measured at step 0)."""
        found = {}
        others = ("_untrained", "_sd")
        for name in [n for n in self.names("probe") if n not in NOT_PLOTTED and not n.endswith(others)]:
            curve, untrained = self.curve("probe", name), self.curve("probe", f"{name}_untrained")
            at_start = curve.y[0] if curve.x[0] == 0 else None
            found[name] = (curve, untrained.y[-1] if untrained.y else at_start)
        return found

    @property
    def measures(self) -> dict[str, tuple[Curve, float | None, float | None]]:
        """What is told of features without labels: name → its curve, its value at the start, its upper bound."""
        names = [n for n in self.names("representation") if n not in NOT_PLOTTED]
        found = {}
        for name in [n for n in names if not n.endswith(("_start", "_bound"))]:
            start, bound = (self.curve("representation", f"{name}_{what}").y for what in ("start", "bound"))
            curve = self.curve("representation", name)
            found[name] = (curve, start[-1] if start else None, bound[-1] if bound else None)
        return found

    @property
    def collapses(self) -> list[tuple[int, str]]:
        """Steps at which the features were found collapsed, and how."""
        return [(line["step"], str(line.get("reason"))) for line in self.of_kind("collapse")]

    @property
    def best(self) -> dict[str, Any] | None:
        """By which metric, and at which step, the checkpoint that is kept was the best."""
        lines = self.of_kind("best")
        return lines[-1] if lines else None


def read_run(run_dir: Path) -> RunSummary:
    """Gather what the folder holds."""
    config = read_mapping(run_dir / "config.yaml")
    name = str(config.get("name") or run_dir.resolve().name)
    return RunSummary(name, config, read_mapping(run_dir / "environment.json"), read_metrics(run_dir))


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON mapping; empty where the file is missing or not one."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def sentence(run: RunSummary) -> str:
    """The run in one sentence."""
    objective = (run.config.get("objective") or {}).get("name")
    encoder = (run.config.get("encoder") or {}).get("name")
    data = (run.config.get("data") or {}).get("path")
    what = f"{title_case(objective)} pretraining" if objective else "Training"
    what += f" of a {title_case(encoder)} encoder" if encoder else ""
    what += f" on {data}" if data else ""
    if not run.train:
        return f"{what}: no training step has been logged yet."
    steps = f"{run.step:,} of {run.total_steps:,} steps" if run.total_steps else f"{run.step:,} steps"
    parts = [f"{steps} in {duration(run.seconds)}"]
    if len(run.losses) == 1:
        y = run.curve("train", run.losses[0]).y
        verb = "fell" if y[-1] < y[0] else "went"
        parts.append(f"the loss {verb} from {y[0]:.3g} to {y[-1]:.3g}")
    for name, (curve, untrained) in list(run.probes.items())[:1]:
        before = f", up from {percent(untrained)} untrained" if untrained is not None else ""
        parts.append(
            f"{article(probe_title(name))} on the frozen encoder reaches {percent(curve.y[-1])}{before}"
        )
    return f"{what}: {'; '.join(parts)}."


def key_numbers(run: RunSummary) -> list[dict[str, str]]:
    """Label, value and remark of the numbers at the top of the report."""
    if not run.train:
        return []
    last = run.train[-1]
    of_total = f"of {run.total_steps:,}" if run.total_steps else ""
    numbers = [card("Steps", f"{run.step:,}", of_total)]
    if "position" in last:
        epochs = f"in epoch {last['epoch'] + 1}" if "epoch" in last else ""
        numbers.append(card("Samples seen", compact(last["position"]), epochs))
    numbers.append(card("Running time", duration(run.seconds), "pauses left out"))
    speed = [v for v in run.curve("train", "samples_per_second").y if v > 0]
    if speed:
        numbers.append(card("Speed", compact(median(speed)), "samples/s, median"))
    for name in run.losses[:2]:
        y = run.curve("train", name).y
        numbers.append(card(f"Last {name}", f"{y[-1]:.4g}", f"first {y[0]:.4g}"))
    for name in run.held_out[:2]:
        y = run.curve("validation", name).y
        numbers.append(card(f"Held-out {name}", f"{y[-1]:.4g}", f"lowest {min(y):.4g}"))
    for name, (curve, untrained) in run.probes.items():
        remark = f"untrained {percent(untrained)}" if untrained is not None else "frozen encoder"
        numbers.append(card(probe_title(name), percent(curve.y[-1]), remark))
    if "rankme" in run.measures:
        curve, start, bound = run.measures["rankme"]
        at_start = "" if start is None else f", {start:.3g} at the start"
        numbers.append(card("RankMe", f"{curve.y[-1]:.3g}", f"of {bound or 0:g}{at_start}"))
    if run.best and is_number(run.best.get("value")):
        value = f"{run.best['value']:.4g}"
        numbers.append(card(f"Best {run.best['metric']}", value, f"step {run.best['step']:,}, kept"))
    return numbers


def card(label: str, value: str, remark: str) -> dict[str, str]:
    return {"label": label, "value": value, "remark": remark}


def probe_title(name: str) -> str:
    titles = {
        "knn": "kNN probe",
        "linear": "Linear probe",
        "few_shot": "Few-shot probe",
        "grid": "Best probe of grid",
    }
    return titles.get(name, name)


def measure_title(name: str) -> str:
    titles = {"rankme": "RankMe", "cosine": "Mean cosine", "dead": "Dead dimensions", "lidar": "LiDAR",
              "alpha_req": "α-ReQ"}  # fmt: skip
    return titles.get(name, name.replace("_", " ").capitalize())


def article(title: str) -> str:
    return "a " + (title if title.startswith("kNN") else title[0].lower() + title[1:])


def title_case(name: Any) -> str:
    """Short names are acronyms: mae → MAE, vit → ViT."""
    text = str(name)
    known = {"vit": "ViT", "bert": "BERT", "modernbert": "ModernBERT", "gpt2": "GPT-2", "llama": "Llama"}
    return known.get(text, text.upper() if len(text) <= 3 else text.replace("_", " ").capitalize())


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def compact(value: float) -> str:
    """1,234 as it is, larger numbers as 256 k or 1.28 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, or h:mm:ss from an hour on."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return clock(seconds) + " h"
