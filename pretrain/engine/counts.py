"""How many things a step's losses sum over: agreed on by all ranks before the first backward pass, in one exchange."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pretrain.objectives.base import Batch, Counts, Objective, Phase, by_name
from pretrain.ops.world import World


class StepCounts:
    """The counts of all phases of a step over the global batch, and whether a rank was asked to stop.

    One exchange a step, begun when the batch is taken. A phase whose count follows from the number of samples does not
    wait for it; otherwise its first backward pass does.
    """

    def __init__(
        self, world: World, objective: Objective, phases: Iterable[Phase], micro_batches: list[Batch], samples: int,
        asked_to_stop: bool,
    ) -> None:  # fmt: skip
        """
        Args:
            micro_batches: this rank's, on the host.
            samples: of all ranks.
            asked_to_stop: this rank.
        """
        self.known: dict[str, dict[str, float]] = {}
        own: dict[tuple[str, str], float] = {}
        for phase in phases:
            if counts_samples(objective):
                self.known[phase.name] = scale_counts(objective.count_per_sample(phase), samples)
                continue
            for batch in micro_batches:
                for name, count in by_name(objective.count(phase, batch)).items():
                    own[phase.name, name] = own.get((phase.name, name), 0.0) + float(count)
        self.places = {key: i for i, key in enumerate(own, 1)}
        # float64 holds every count up to 2^53 exactly
        self.pending = world.start_sum(
            torch.tensor([float(asked_to_stop), *own.values()], dtype=torch.float64)
        )

    def of(self, phase: Phase) -> dict[str, float]:
        """The counts of a phase by name; waits for the other ranks where the batch had to be looked at."""
        if phase.name in self.known:
            return self.known[phase.name]
        total = self.pending.wait().tolist()
        return {name: total[i] for (owner, name), i in self.places.items() if owner == phase.name}

    def any_asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop, the same on all of them; waits for the other ranks."""
        return bool(self.pending.wait()[0] > 0)


def counts_samples(objective: Objective) -> bool:
    """Whether an objective's counts follow from the number of samples: it has no `count` of its own."""
    return type(objective).count is Objective.count


def scale_counts(per_sample: Counts, samples: int) -> dict[str, float]:
    return {name: float(count * samples) for name, count in by_name(per_sample).items()}
