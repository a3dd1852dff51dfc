"""One picture: accuracy against cost, how it was found on the left, how it is judged on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from data_tools.storage.atomic import atomic_file
from pretrain.compare.table import Row, Way

Point = tuple[float, Way]
"""Seconds of pretraining so far, and the probe that was best then."""


def draw_chart(rows: Sequence[Row], curves: Mapping[str, Sequence[Point]], shots: int, path: Path) -> None:
    """Write a PNG.

    Args:
        curves: by candidate, what its frozen features were worth after each rung.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pretrain.report.charts import PALETTE

    names = list(dict.fromkeys([*curves, *(row.name for row in rows)]))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, points in curves.items():
        seconds, ways = zip(*points, strict=True)
        means = [100 * fmean(way.select) for way in ways]
        spread = [100 * stdev(way.select) for way in ways]
        left.errorbar(
            seconds, means, yerr=spread, color=colours[name], marker="o", markersize=4, capsize=3, label=name
        )
    left.set(title="While it ran: frozen features", xlabel="seconds of pretraining",
             ylabel=f"accuracy on samples that choose, %, {shots} labels a class")  # fmt: skip
    for row in rows:
        for way, marker in ((row.frozen, "o"), (row.tuned, "s")):
            if way is None:
                continue
            right.errorbar(
                row.seconds + way.seconds, 100 * fmean(way.test), yerr=100 * stdev(way.test), color=colours[row.name],
                marker=marker, markersize=6, capsize=3, markerfacecolor="white" if marker == "s" else None,
            )  # fmt: skip
    right.set(title="At the end: ● frozen, □ fine-tuned", xlabel="seconds of pretraining, and of one fine-tuning",
              ylabel="accuracy on test samples, %")  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    handles = [
        right.plot([], [], marker="o", linestyle="", color=colours[row.name], label=row.name)[0]
        for row in rows
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
