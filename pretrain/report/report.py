"""`report.html`: a run as one file to show to somebody. A pure function of the run folder, at any time of the run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_tools.storage.atomic import write_atomically
from pretrain.report.charts import PALETTE, Curve, curve_chart
from pretrain.report.finetune_results import present, read_results
from pretrain.report.run_summary import (
    RunSummary,
    key_numbers,
    measure_title,
    probe_title,
    read_run,
    sentence,
)
from pretrain.tracking.environment import redact
from pretrain.tracking.pictures import KINDS

PICTURES = 4  # steps whose pictures are shown: the first, the last, and some between
VIEWS = {
    "map": ("Map of the samples", "Pooled features of the samples that the run looks at; a label, where there is one, "
            "is read for its colour alone."),
    "neighbours": ("Nearest neighbours", "Of a few samples, those among all that the run looks at whose pooled "
                   "features have the largest cosine."),
    "patches": ("Features of places", "The first three principal components of the features, over all places shown, as "
                "red, green and blue."),
    "attention": ("Attention", "How much the last block's class token looks at each patch (all patches on the average, "
                  "where there is no such token); white: most."),
}  # fmt: skip
"""By the name of a picture of features, its title and what it shows, in their order."""


def write_report(run_dir: Path, finetune_results: Path | None = None) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        finetune_results: fine-tuning results to show; default `finetune/finetune.json` of the run folder, if any.
    """
    run = read_run(run_dir)
    tasks = read_results(finetune_results or run_dir / "finetune" / "finetune.json")
    html = template().render(
        run=run,
        sentence=sentence(run),
        numbers=key_numbers(run),
        charts=training_charts(run),
        measures=measure_charts(run),
        probe_chart=probe_chart(run),
        grid=probe_grid_table(run),
        features=feature_charts(run),
        pictures=pictures(run, run_dir, "picture", PICTURES),
        views=feature_pictures(run, run_dir),
        tasks=[present(task) for task in tasks],
        release=release_text(run_dir / "release" / "README.md"),
        config=yaml.safe_dump(redact(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        environment=yaml.safe_dump(redact(run.environment), sort_keys=False, width=100)
        if run.environment
        else "",
    )
    path = run_dir / "report.html"
    write_atomically(path, html)
    return path


def template() -> Any:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["svg"] = Markup  # our own charts, made safe where they are drawn
    return environment.get_template("report.html")


def training_charts(run: RunSummary) -> dict[str, str]:
    """Loss (one line a phase, and dashed on held-out samples), learning rate and samples per second over steps."""
    charts = {}
    if run.losses:
        curves = [run.curve("train", name) for name in run.losses]
        for name in run.held_out:
            color = PALETTE[run.losses.index(name) % len(PALETTE)] if name in run.losses else None
            held_out = run.curve("validation", name)
            curves.append(replace(held_out, name=f"{name}, held out", dashed=True, color=color))
        charts["loss"] = curve_chart(
            curves, "Loss" if len(curves) > 1 else run.losses[0].capitalize(), smooth=True
        )
    for key, name, title in (
        ("lr", "lr", "Learning rate"),
        ("speed", "samples_per_second", "Samples per second"),
    ):
        curve = run.curve("train", name)
        if curve.y:
            curve = replace(curve, color=PALETTE[6] if key == "speed" else PALETTE[2])
            charts[key] = curve_chart([curve], title, (4.3, 2.1), from_zero=True, smooth=key == "speed")
    return charts


def measure_charts(run: RunSummary) -> list[str]:
    """One small chart for each other number in the training lines."""
    return [
        curve_chart(
            [replace(run.curve("train", name), color=PALETTE[6])],
            name.replace("_", " "), (4.3, 1.9), smooth=True,
        )
        for name in run.other_measures
    ]  # fmt: skip


def probe_chart(run: RunSummary) -> str | None:
    """Accuracy of each probe over steps; the untrained encoder's as a dashed line across."""
    curves = []
    for i, (name, (curve, untrained)) in enumerate(run.probes.items()):
        color = PALETTE[i % len(PALETTE)]
        curves.append(replace(curve, name=probe_title(name), color=color))
        if untrained is not None:
            across = [0.0, max(curve.x[-1], float(run.step))]
            label = f"{probe_title(name)}, untrained"
            curves.append(Curve(label, across, [untrained] * 2, dashed=True, color=color))
    return (
        curve_chart(curves, "Accuracy on the frozen encoder", percent=True, markers=True) if curves else None
    )


def feature_charts(run: RunSummary) -> list[str]:
    """A small chart for each measure of the features; dashed what it was at the start of the run."""
    charts = []
    for i, (name, (curve, start, bound)) in enumerate(run.measures.items()):
        curves = [replace(curve, name=measure_title(name), color=PALETTE[i % len(PALETTE)])]
        if start is not None and curve.x:
            curves.append(
                Curve("at the start", [0.0, curve.x[-1]], [start] * 2, dashed=True, color=PALETTE[6])
            )
        of = f" (at most {bound:g})" if bound else ""
        charts.append(
            curve_chart(curves, f"{measure_title(name)}{of}", (4.3, 1.9), from_zero=min(curve.y) >= 0)
        )
    return charts


def probe_grid_table(run: RunSummary) -> dict[str, Any] | None:
    """The newest grid of probes: a row a layer, a column for each pooling and decay; the chosen head is marked."""
    lines = [line for line in run.of_kind("probe") if isinstance(line.get("grid_cells"), dict)]
    if not lines:
        return None
    cells = {tuple(name.split(", ")): value for name, value in lines[-1]["grid_cells"].items()}
    chosen = tuple(str(lines[-1].get("grid_choice")).split(", "))
    columns = list(dict.fromkeys(cell[1:] for cell in cells))
    rows = [
        {
            "name": layer.capitalize(),
            "cells": [
                {"text": f"{100 * cells[layer, *column]:.1f}", "best": (layer, *column) == chosen}
                for column in columns
            ],
        }
        for layer in dict.fromkeys(cell[0] for cell in cells)
    ]
    return {"step": lines[-1]["step"], "columns": [", ".join(column) for column in columns], "rows": rows}


def feature_pictures(run: RunSummary, run_dir: Path) -> list[dict[str, Any]]:
    """Each kind of named picture at the first and the last step that has one."""
    kinds = dict.fromkeys(kind for line in run.lines if (kind := str(line["kind"])).startswith("picture/"))
    names = [kind.removeprefix("picture/") for kind in kinds]
    shown = [
        {**dict(zip(("title", "note"), VIEWS.get(name, (name.capitalize(), "")), strict=True)),
         "pictures": pictures(run, run_dir, f"picture/{name}", 2)}
        for name in sorted(names, key=lambda name: [*VIEWS, name].index(name))
    ]  # fmt: skip
    return [view for view in shown if view["pictures"]]


def pictures(run: RunSummary, run_dir: Path, kind_of_line: str, count: int) -> list[dict[str, Any]]:
    """Pictures of a few steps: an image as a data URI, or excerpts of text with their parts marked."""
    found = []
    for line in spread(run.of_kind(kind_of_line), count):
        path = (run_dir / str(line.get("path", ""))).resolve()
        if not path.is_relative_to((run_dir / "pictures").resolve()) or not path.is_file():
            continue
        kind = KINDS.get(path.suffix)
        with suppress(ValueError, KeyError, TypeError):  # damaged: the others are shown
            if kind is not None:
                found.append({"step": line["step"], **kind.describe_file(path)})
    return found


def spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` items: the first, the last, and others evenly between."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def release_text(card: Path) -> str | None:
    """The first paragraph of a model card, after its YAML head and title."""
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if text.startswith("---"):
        text = text.partition("\n---")[2]
    paragraphs = [p.strip() for p in text.split("\n\n")]
    prose = [p for p in paragraphs if p and p[0] not in "#|`<-!["]
    return " ".join(prose[0].split())[:600] if prose else ""
