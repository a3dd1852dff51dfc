"""Fine-tuning results in the report: a table and a chart of accuracy against labels per class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.report.charts import Curve, label_efficiency_chart

# In the report's order: name, colour (a control shares the colour of what it controls), dashed for controls.
METHODS = {
    "full": ("Fine-tuned", "#0072B2", False),
    "scratch": ("From scratch", "#0072B2", True),
    "linear": ("Linear probe", "#D55E00", False),
    "linear_untrained": ("Linear probe, untrained", "#D55E00", True),
    "knn": ("kNN", "#009E73", False),
    "knn_untrained": ("kNN, untrained", "#009E73", True),
    "knn_raw": ("kNN, raw input", "#7b8494", True),
}


def read_results(path: Path) -> list[dict[str, Any]]:
    """The tasks in a results file (one, or a list of them) that have rows; none where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    tasks = content if isinstance(content, list) else [content]
    tasks = [task for task in tasks if isinstance(task, dict) and isinstance(task.get("rows"), list)]
    needed = {"labels_per_class", "method", "mean"}
    tasks = [{**task, "rows": [row for row in task["rows"] if needed <= set(row)]} for task in tasks]
    return [task for task in tasks if task["rows"]]


def present(task: dict[str, Any]) -> dict[str, Any]:
    """A task as the report shows it: title, column heads, table rows, chart, what it took, one sentence."""
    rows = task["rows"]
    metric = str(task.get("metric", "accuracy"))
    labels: list[Any] = sorted(
        {row["labels_per_class"] for row in rows}, key=lambda n: (not isinstance(n, int), n)
    )
    methods = sorted({row["method"] for row in rows}, key=order)
    cells = {(row["method"], row["labels_per_class"]): row for row in rows}
    table: list[dict[str, Any]] = [
        {"name": method_name(m), "control": is_control(m), "cells": [cell(cells.get((m, n))) for n in labels]}
        for m in methods
    ]
    for column in range(len(labels)):
        numbered = [row["cells"][column] for row in table if row["cells"][column]]
        max(numbered, key=lambda c: c["mean"])["best"] = True
    draws = max(len(row.get("draws") or []) for row in rows)
    return {
        "title": str(task.get("task", "Fine-tuning")).replace("_", " "),
        "metric": metric,
        "labels": labels,
        "table": table,
        "draws": draws,
        "seconds": task.get("seconds"),
        "sentence": gain_sentence(cells, labels),
        "chart": label_efficiency_chart(
            [method_curve(m, labels, cells) for m in methods],
            f"{metric.capitalize()} with few labels",
            metric,
        )
        if all(isinstance(n, int) for n in labels)
        else None,
    }


def method_curve(method: str, labels: list[int], cells: dict[tuple[str, Any], dict[str, Any]]) -> Curve:
    found = [cells[method, n] for n in labels if (method, n) in cells]
    color = METHODS[method][1] if method in METHODS else None
    return Curve(
        method_name(method),
        [float(row["labels_per_class"]) for row in found],
        [row["mean"] for row in found],
        sd=[row.get("sd") or 0.0 for row in found],
        dashed=is_control(method),
        color=color,
    )


def gain_sentence(cells: dict[tuple[str, Any], dict[str, Any]], labels: list[Any]) -> str:
    """What pretraining brought over training from scratch, at the fewest labels."""
    fewest = labels[0]
    pretrained, scratch = cells.get(("full", fewest)), cells.get(("scratch", fewest))
    if not pretrained or not scratch:
        return ""
    points = 100 * (pretrained["mean"] - scratch["mean"])
    return (
        f"With {fewest} labels a class, the pretrained encoder is {abs(points):.1f} points "
        f"{'better' if points >= 0 else 'worse'} than the same network trained from scratch."
    )


def cell(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    sd = row.get("sd")
    text = f"{100 * row['mean']:.1f}"
    return {"mean": row["mean"], "text": text, "sd": None if sd is None else f"{100 * sd:.1f}", "best": False}


def order(method: str) -> tuple[int, str]:
    known = list(METHODS)
    return (known.index(method) if method in known else len(known), method)


def method_name(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method.replace("_", " ")


def is_control(method: str) -> bool:
    return METHODS[method][2] if method in METHODS else False
