"""What the comparison has found, as rows, a table and a verdict: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot
from statistics import fmean, stdev

from pretrain.compare.options import describe_duration


@dataclass(frozen=True)
class Way:
    """One way to use what a row stands for: a probe on frozen features, or fine-tuning."""

    name: str
    select: list[float]
    """Accuracies by draw on the samples that choose."""
    test: list[float]
    """On those that judge."""
    seconds: float = 0.0
    """Of fine-tuning on one draw; 0 for probes."""

    @property
    def is_frozen(self) -> bool:
        return not self.name.startswith("fine-tuned")


@dataclass(frozen=True)
class Point:
    """What pretraining had come to after a rung."""

    steps: int
    seconds: float
    way: Way
    """The probe that was best then."""


@dataclass
class Row:
    """A line of the table; it grows while the comparison runs."""

    name: str
    probes: list[Way] = field(default_factory=list)
    """Of its newest features."""
    tuned: Way | None = None
    points: list[Point] = field(default_factory=list)
    """After each of its rungs; none for what was not pretrained here."""
    contends: bool = False
    """Whether it may win: it was pretrained here, to the last rung."""
    notes: list[str] = field(default_factory=list)

    @property
    def frozen(self) -> Way | None:
        """The probe that is best on the samples that choose, so that those that judge have chosen nothing."""
        return best_of(self.probes)

    @property
    def best(self) -> Way | None:
        return best_of([*self.probes, *([self.tuned] if self.tuned else [])])

    @property
    def score(self) -> float:
        """What survivors are chosen by."""
        return fmean(self.points[-1].way.select)


def best_of(ways: Sequence[Way]) -> Way | None:
    return max(ways, key=lambda way: fmean(way.select), default=None)


def margin(a: Way, b: Way) -> tuple[float, float]:
    """By how much `a` is better than `b` on the test samples, and the deviation of that over draws of the labels.

    Two probes, or two ways of fine-tuning, had the same draws, and are compared draw by draw; a probe and fine-tuning
    had not.
    """
    difference = fmean(a.test) - fmean(b.test)
    if a.is_frozen == b.is_frozen:
        return difference, stdev(x - y for x, y in zip(a.test, b.test, strict=True))
    return difference, hypot(stdev(a.test), stdev(b.test))


def order_rows(rows: Sequence[Row]) -> list[Row]:
    """Best first on the test samples; those without a result last."""
    return sorted(rows, key=lambda row: -fmean(row.best.test) if row.best else 1.0)


def describe_table(rows: Sequence[Row], shots: int) -> str:
    """The rows as a Markdown table, best first."""
    lines = [
        f"| accuracy, %, {shots} labels a class | best | frozen | fine-tuned | pretraining | note |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in order_rows(rows):
        probe = f" ({row.frozen.name})" if row.frozen else ""
        steps = f" ({row.tuned.name.removeprefix('fine-tuned, ')})" if row.tuned else ""
        last = row.points[-1] if row.points else None
        cost = f"{last.steps:,} steps, {describe_duration(last.seconds)}" if last else "–"
        notes = "; ".join(row.notes).replace("|", "\\|")
        cells = (row.name, f"**{percent(row.best)}**" if row.best else "–", percent(row.frozen) + probe,
                 percent(row.tuned) + steps, cost, notes)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(way: Way | None) -> str:
    return f"{100 * fmean(way.test):.1f} ± {100 * stdev(way.test):.1f}" if way else "–"


def find_winner(rows: Sequence[Row]) -> Row | None:
    """The best of those that contend; None where none has a result."""
    return next((row for row in order_rows(rows) if row.contends and row.best), None)


def describe_verdict(rows: Sequence[Row]) -> list[str]:
    """Who wins, by how much against the spread over labels, and whether pretraining pays at all."""
    winner = find_winner(rows)
    if winner is None:
        return ["no winner: no pretrained encoder came to the end"]
    ordered = [row for row in order_rows(rows) if row.best and row is not winner]
    rivals = [row for row in ordered if row.contends]
    controls = [row for row in ordered if not row.points]
    lines = [f"winner: {winner.name}, the only one that came to the end"]
    if rivals:
        lines = [compare_rows(winner, rivals[0], f"winner: {winner.name}", "no clear winner")]
    if controls:
        lines += [compare_rows(winner, controls[0], "pretraining pays", "pretraining does not clearly pay")]
    return lines


def compare_rows(ours: Row, theirs: Row, clear: str, unclear: str) -> str:
    """A line that says which of the two it is, and why."""
    assert ours.best and theirs.best, "both have a result"
    difference, spread = margin(ours.best, theirs.best)
    verdict = clear if difference > spread else unclear
    pair = f"{ours.name} ({ours.best.name}) against {theirs.name} ({theirs.best.name})"
    by = f"{100 * difference:+.1f} points, the spread over draws of the labels is {100 * spread:.1f}"
    return f"{verdict}: {pair}: {by}"
