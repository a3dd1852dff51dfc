"""Successive halving at equal seconds (Jamieson & Talwalkar 2016, arXiv:1502.07943), as pure functions.

The pretraining budget has as many equal parts as there are rungs. In each, the candidates that are left get equal
seconds, and afterwards the worse half stops, until two are left, which are then compared in earnest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_STEPS = 10
"""Of a candidate in the first rung: fewer say nothing."""
PRETRAINING = 2 / 3
"""Share of what is left of the budget once candidates are measured; less where fine-tuning needs more than the rest."""


@dataclass(frozen=True)
class Pace:
    """How fast a candidate is on this machine."""

    step: float
    """Seconds a step."""
    start: float
    """Seconds of a process beside its steps."""


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


def least_seconds(paces: Mapping[str, Pace], probing: float) -> float:
    """Seconds of all rungs with which every candidate takes `LEAST_STEPS` steps in the first, its shortest."""
    share = max(pace.start + probing + LEAST_STEPS * pace.step for pace in paces.values())
    return share * len(paces) * len(count_survivors(len(paces)))


def share_seconds(seconds: float, least_tuning: float) -> tuple[float, float]:
    """Seconds of pretraining and of fine-tuning, which gets `least_tuning` at least."""
    tuning = max((1 - PRETRAINING) * seconds, least_tuning)
    return seconds - tuning, tuning


def needed_seconds(least_pretraining: float, least_tuning: float) -> float:
    """The fewest of which `share_seconds` gives both what they need."""
    return max(least_pretraining / PRETRAINING, least_pretraining + least_tuning)


def plan_rungs(paces: Mapping[str, Pace], seconds: float, probing: float) -> list[Rung]:
    """The rungs of `seconds` altogether, at least `least_seconds`; a candidate's steps are as if it ran in all of them.

    Args:
        probing: seconds to probe one encoder, which count like those of a process that starts.
    """
    counts = count_survivors(len(paces))
    rungs: list[Rung] = []
    done = dict.fromkeys(paces, 0)
    for runs in counts:
        share = seconds / len(counts) / runs
        for name, pace in paces.items():
            steps = math.floor(
                (share - pace.start - probing) / pace.step + 1e-6
            )  # what was rounded is no step less
            done[name] += steps
        rungs.append(Rung(runs, share, dict(done)))
    return rungs


def keep_better(scores: Mapping[str, float], runs: int) -> list[str]:
    """The names of the `runs` best, best first; of equals the one that comes first."""
    return sorted(scores, key=lambda name: -scores[name])[:runs]
