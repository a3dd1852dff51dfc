"""A job's results for people: an aligned table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.storage.atomic import atomic_file, write_atomically
from pretrain.report.finetune_results import METHODS

RESULTS = "finetune.json"


def write_results(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write `finetune.json`, and `finetune.png` where there is a curve to draw; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / RESULTS]
    write_atomically(written[0], json.dumps(result, indent=1) + "\n")
    if any(row["labels_per_class"] for row in result["rows"]):
        written.append(folder / "finetune.png")
        plot(result, written[-1])
    return written


def table(result: dict[str, Any]) -> str:
    """One line a method, one column a number of labels, in per cent."""
    rows = result["rows"]
    sizes = list(dict.fromkeys(row["labels_per_class"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["method"], row["labels_per_class"]): cell(row) for row in rows}
    head = ["accuracy, %", *(f"{size} labels a class" if size else "all labels" for size in sizes)]
    body = [[METHODS[m][0], *(cells.get((m, size), "–") for size in sizes)] for m in methods]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        line[0].ljust(widths[0])
        + "".join(f"   {text.rjust(width)}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in (head, *body)
    ]
    lines.insert(1, "─" * len(lines[0]))
    draws = max(len(row["draws"]) for row in rows)
    how = f"mean ± standard deviation over {draws} draws; " if draws > 1 else ""
    lines.append(f"{how}{result['test_samples']:,} test samples")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def cell(row: dict[str, Any]) -> str:
    spread = f" ± {100 * row['sd']:4.1f}" if len(row["draws"]) > 1 else ""
    return f"{100 * row['mean']:5.1f}{spread}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy against labels a class, error bars of one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = result["rows"]
    sizes = sorted({row["labels_per_class"] for row in rows})
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["labels_per_class"])
        name, colour, is_control = METHODS[method]
        axes.errorbar(
            [r["labels_per_class"] for r in own],
            [100 * r["mean"] for r in own],
            yerr=[100 * r["sd"] for r in own],
            label=name,
            color=colour,
            linestyle="--" if is_control else "-",
            marker="o",
            markersize=4,
            capsize=3,
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("labels a class")
    axes.set_ylabel(f"{result['metric']}, % ({result['test_samples']:,} test samples)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
