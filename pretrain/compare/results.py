"""What a comparison ends with: table, JSON, picture, and the recipe that trains the winner in full."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict

from data_tools.storage.atomic import write_atomically
from data_tools.storage.objects import redacted
from pretrain.compare.candidates import Candidate
from pretrain.compare.chart import draw_chart
from pretrain.compare.jobs import read_spent
from pretrain.compare.options import Options, describe_duration
from pretrain.compare.plan import Pace
from pretrain.compare.runs import write_recipe
from pretrain.compare.table import Row, describe_table, describe_verdict, find_winner, order_rows

RESULT, TABLE, CHART, FULL = "compare.json", "compare.md", "compare.png", "full.yaml"
LEGEND = "mean ± standard deviation over draws of the labels, on samples that chose nothing"


def write_results(options: Options, rows: Sequence[Row], full: Sequence[str]) -> list[str]:
    """Write table, JSON and picture; the lines for the user.

    Args:
        full: how the winner is trained in full.
    """
    verdict, winner, out = describe_verdict(rows), find_winner(rows), options.out
    values = {
        "rows": [asdict(row) for row in order_rows(rows)],
        "winner": winner.name if winner else None,
        "verdict": verdict,
        "seconds": read_spent(out),
        "settings": options.identity(),
    }
    lines = [describe_table(rows, options.shots), "", f"{LEGEND}  ", "  \n".join([*verdict, *full])]
    write_atomically(out / RESULT, json.dumps(values, indent=1) + "\n")
    write_atomically(out / TABLE, "\n".join(lines) + "\n")
    draw_chart(rows, options.shots, out / CHART)
    return [*lines, f"written: {out / TABLE}, {out / RESULT}, {out / CHART}"]


def write_full(options: Options, candidate: Candidate, pace: Pace) -> list[str]:
    """The recipe of the winner on all of the data, for as long as the comparison took, and its command."""
    steps = max(1, int(options.budget / pace.step))
    values = copy.deepcopy(candidate.values)
    values["name"] = f"{candidate.name}_full"
    values["data"]["path"] = redacted(options.data)
    values["train"] = {**{k: v for k, v in values["train"].items() if k != "epochs"}, "steps": steps}
    path = write_recipe(options.out / FULL, values)
    start = f"torchrun --nproc-per-node {options.ranks}" if options.ranks > 1 else "python"
    return [
        f"in full ({steps:,} steps, about {describe_duration(options.budget)} here; longer: train.steps=):",
        f"`{start} -m pretrain {path}`",
    ]
