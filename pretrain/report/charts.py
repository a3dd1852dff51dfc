"""The report's charts, as inline SVG. Colours: Okabe & Ito's palette, told apart by colour-blind readers too."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b6270")
INK, FAINT, GRID = "#3b4252", "#7b8494", "#e8ebf0"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": FAINT,
    "axes.edgecolor": "#c9cfd9", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.9,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.major.size": 3, "ytick.major.size": 0,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
    "svg.fonttype": "path", "svg.hashsalt": "masquerade", "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
MAX_POINTS = 500  # of a curve; more would only make the file larger


@dataclass(frozen=True)
class Curve:
    """A named line of a chart."""

    name: str
    x: list[float]
    y: list[float]
    sd: list[float] | None = None
    dashed: bool = False
    color: str | None = None


def curve_chart(
    curves: list[Curve],
    title: str = "",
    size: tuple[float, float] = (8.6, 3.2),
    smooth: bool = False,
    percent: bool = False,
    from_zero: bool = False,
    markers: bool = False,
    x_label: str = "step",
) -> str:
    """Lines over steps, each named at its side.

    `smooth` draws noisy curves lightly with their moving average on top; a positive one that spans more than a factor
    of 30 gets a logarithmic axis.
    """

    def draw(axes: Axes) -> None:
        for i, curve in enumerate(curves):
            draw_curve(axes, curve, curve.color or PALETTE[i % len(PALETTE)], smooth, markers)
        values = np.array([y for curve in curves for y in curve.y if math.isfinite(y)])
        if (
            len(values)
            and values.min() > 0
            and values.max() > 30 * values.min()
            and not (percent or from_zero)
        ):
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        format_y(axes, values, percent)
        if from_zero:
            axes.set_ylim(bottom=0, top=1.15 * (values.max(initial=0) or 1))
        if len(curves) > 1:
            axes.figure.legend(loc="outside right center")
        axes.margins(x=0.01)

    return svg(draw, size, title or ", ".join(curve.name for curve in curves))


def draw_curve(axes: Axes, curve: Curve, color: str, smooth: bool, markers: bool) -> None:
    x, y = thin(np.asarray(curve.x, float), np.asarray(curve.y, float))
    style: dict[str, Any] = {"color": color, "linestyle": (0, (4, 3)) if curve.dashed else "-"}
    if markers and not curve.dashed:
        style |= {"marker": "o", "markersize": 4.5, "markeredgewidth": 0}
    if smooth and len(y) > 30:
        axes.plot(x, y, color=color, alpha=0.28, linewidth=1)
        y = moving_average(y, max(3, len(y) // 25))
    axes.plot(x, y, label=curve.name, **style)


def label_efficiency_chart(curves: list[Curve], title: str, ylabel: str, percent: bool = True) -> str:
    """Accuracy against labels per class (log axis), error bars of one standard deviation over draws."""
    ticks = sorted({x for curve in curves for x in curve.x})

    def draw(axes: Axes) -> None:
        for i, curve in enumerate(curves):
            color = curve.color or PALETTE[i % len(PALETTE)]
            # Side by side: error bars at the same place would hide each other.
            x = np.asarray(curve.x) * 1.025 ** (i - (len(curves) - 1) / 2)
            axes.errorbar(
                x, curve.y, yerr=curve.sd, label=curve.name, color=color, capsize=3, elinewidth=1.1,
                linestyle=(0, (4, 3)) if curve.dashed else "-", marker="o", markersize=5, markeredgewidth=0,
                alpha=0.75 if curve.dashed else 1,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
        axes.set_title(title)
        axes.set_xlabel("labels per class")
        axes.set_ylabel(ylabel)
        format_y(axes, np.array([y for curve in curves for y in curve.y]), percent)
        axes.figure.legend(loc="outside right center")

    return svg(draw, (8.6, 3.8), title)


def format_y(axes: Axes, values: np.ndarray, percent: bool) -> None:
    """Percent, or thousands and millions by letter; small numbers as they are."""
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    elif axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif len(values) and np.abs(values).max() >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif len(values) and 0 < np.abs(values).max() < 0.01:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_exponent(value)))


def short_exponent(value: float) -> str:
    """0.0015 → `1.5e-3`."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value / 10**exponent:.3g}e{exponent}"


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: means of equal runs. Points that are not finite are left out."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def moving_average(y: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window, which shrinks towards both ends so that they stay where they are."""
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    half = np.minimum(width // 2, np.minimum(i, len(y) - 1 - i))
    return (total[i + half + 1] - total[i - half]) / (2 * half + 1)


def svg(draw: Callable[[Axes], None], size: tuple[float, float], description: str) -> str:
    """An SVG element to stand in HTML: scales with the page, refers to nothing outside."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")  # text of one size in all charts
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML knows them
    # Two charts on a page must not refer to each other's shapes.
    prefix = f"c{zlib.crc32((description + text).encode()):x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text).replace("url(#", f"url(#{prefix}")
    label = re.sub(r'[<>&"]', " ", description)
    return re.sub(r'<svg height="[^"]*"', "<svg", text, count=1).replace(
        "<svg", f'<svg role="img" aria-label="{label}"', 1
    )
