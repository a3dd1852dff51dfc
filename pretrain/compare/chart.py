"""One picture: accuracy against the cost of pretraining on the left, and how each is judged at the end on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_tools.storage.atomic import atomic_file
from pretrain.compare.table import Row, order_rows
from pretrain.report.charts import FAINT, PALETTE, STYLE


def draw_chart(rows: Sequence[Row], shots: int, path: Path) -> None:
    """Write a PNG of the rows that have a result."""
    rows = [row for row in order_rows(rows) if row.best]
    with mpl.rc_context({**STYLE, "figure.facecolor": "white"}):
        height = max(3.6, 1.6 + 0.26 * len(rows))
        figure = Figure(figsize=(11, height), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
        draw_cost(left, [row for row in rows if row.points])
        draw_end(right, rows)
        figure.supylabel(f"accuracy at {shots} labels a class, %", fontsize=9.5, color=FAINT)
        with atomic_file(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def draw_cost(axes: Axes, rows: Sequence[Row]) -> None:
    """What each objective's frozen features were worth after every rung, on the samples that choose."""
    for i, row in enumerate(rows):
        seconds = [point.seconds for point in row.points]
        draws = [[100 * x for x in point.way.select] for point in row.points]
        colour, dashed = PALETTE[i % len(PALETTE)], i >= len(PALETTE)
        axes.errorbar(
            seconds, [fmean(one) for one in draws], yerr=[stdev(one) for one in draws], color=colour, marker="o",
            markersize=4, capsize=3, elinewidth=1, linestyle="--" if dashed else "-", label=row.name,
        )  # fmt: skip
    axes.set(title="Frozen features, on samples that choose", xlabel="seconds of pretraining")
    axes.set_xlim(left=0)
    if rows:
        axes.legend(loc="best", fontsize=8)


def draw_end(axes: Axes, rows: Sequence[Row]) -> None:
    """Each row's frozen and fine-tuned accuracy on the samples that judge, best on top; lower in the table, lower."""
    for which, colour, marker, name in ((0, PALETTE[0], "o", "frozen"), (1, PALETTE[1], "s", "fine-tuned")):
        found = [(y, (row.frozen, row.tuned)[which]) for y, row in enumerate(rows)]
        shown = [(y, [100 * x for x in way.test]) for y, way in found if way]
        axes.errorbar(
            [fmean(draws) for _, draws in shown], [y for y, _ in shown], xerr=[stdev(draws) for _, draws in shown],
            color=colour, marker=marker, markersize=5, capsize=3, linestyle="", elinewidth=1, label=name,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set(title="At the end, on samples that judge", xlabel="accuracy, %")
    axes.legend(loc="best", fontsize=8)
