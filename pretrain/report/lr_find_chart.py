"""The picture of a learning-rate range test."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pretrain.report.charts import FAINT, PALETTE, STYLE

HEADROOM = 0.5
"""Of the span of losses before divergence, how much is shown above the first of them."""


def range_test_chart(
    rates: Sequence[float], losses: Sequence[float], smoothed: np.ndarray, suggestion: float | None
) -> bytes:
    """A PNG: the loss over the rate's logarithm, smoothed over it, and the suggestion. What diverged is cut off."""
    with mpl.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = Figure(figsize=(7.2, 3.6), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=PALETTE[0], alpha=0.28, linewidth=1)
        axes.plot(rates, smoothed, color=PALETTE[0], label="loss, smoothed")
        if suggestion is not None:
            axes.axvline(
                suggestion, color=PALETTE[1], linestyle=(0, (4, 3)), label=f"suggestion {suggestion:g}"
            )
        first, lowest = float(smoothed[0]), float(np.nanmin(smoothed))
        span = max(first - lowest, abs(first) / 10)
        axes.set_ylim(lowest - span / 10, first + HEADROOM * span)
        axes.set_xscale("log")
        # Words instead of formulas, whose fonts are not everywhere: matplotlib warns of each that it lacks.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("learning rate", color=FAINT)
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
