"""Successive halving at equal seconds (Jamieson & Talwalkar 2016, arXiv:1502.07943), as pure functions.

The pretraining budget has as many equal parts as there are rungs. In each, the candidates that are left get equal
seconds, and afterwards the worse half stops, until two are left, which are then compared in earnest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from data_tools.errors import UserError
from pretrain.compare.options import describe_duration

PRETRAINING = 2 / 3
"""Share of what is left of the budget once candidates are measured; the rest is for fine-tuning."""
LEAST_STEPS = 10
"""Of a candidate in the first rung: fewer say nothing."""


@dataclass(frozen=True)
class Pace:
    """How fast a candidate is on this machine."""

    step: float
    """Seconds a step."""
    start: float
    """Seconds of a process before its first step."""


@dataclass(frozen=True)
class Rung:
    """A part of the budget: how many run in it, the seconds of each, and after which step each stops."""

    runs: int
    seconds: float
    stop_at: dict[str, int]


def count_survivors(candidates: int) -> list[int]:
    """How many run in each rung: 5 → [5, 3, 2]."""
    counts = [candidates]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    return counts


def finalist_share(candidates: int) -> float:
    """The share of the rungs' seconds that one gets which runs in all of them."""
    counts = count_survivors(candidates)
    return sum(1 / runs for runs in counts) / len(counts)


def plan_rungs(paces: Mapping[str, Pace], seconds: float, probing: float) -> list[Rung]:
    """The rungs of `seconds` altogether; a candidate's steps are as if it ran in all of them.

    Args:
        probing: seconds to probe one encoder, which count like those of a process that starts.
    Raises:
        UserError: a candidate would take fewer than `LEAST_STEPS` steps in the first rung.
    """
    counts = count_survivors(len(paces))
    rungs: list[Rung] = []
    for runs in counts:
        share = seconds / len(counts) / runs
        before = rungs[-1].stop_at if rungs else dict.fromkeys(paces, 0)
        steps = {n: math.floor((share - p.start - probing) / p.step) for n, p in paces.items()}
        rungs.append(Rung(runs, share, {name: before[name] + max(1, steps[name]) for name in paces}))
        if not before[next(iter(paces))]:
            refuse_too_few(steps, paces, probing, len(counts) * runs)
    return rungs


def refuse_too_few(steps: Mapping[str, int], paces: Mapping[str, Pace], probing: float, shares: int) -> None:
    """Raise a `UserError` that says which budget would do, where a candidate has fewer than `LEAST_STEPS`."""
    name = min(steps, key=lambda name: steps[name])
    if steps[name] < LEAST_STEPS:
        pace = paces[name]
        needed = max(p.start + probing + LEAST_STEPS * p.step for p in paces.values()) * shares / PRETRAINING
        raise UserError(
            f"--budget: {name} would take {max(0, steps[name])} steps in the first rung ({pace.step:.2g} s a step, "
            f"{pace.start + probing:.0f} s to start and to probe); give at least {describe_duration(1.2 * needed)}, or "
            "name fewer --objectives"
        )


def keep_better(scores: Mapping[str, float], runs: int) -> list[str]:
    """The names of the `runs` best, best first; of equals the one that comes first."""
    return sorted(scores, key=lambda name: -scores[name])[:runs]
