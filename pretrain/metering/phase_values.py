"""What the newest step of a phase came to, on this rank and on the device, until it is logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from data_tools.errors import UserError
from pretrain.objectives.base import Loss, Metric, by_name


class PhaseValues:
    """One phase's values by name: this rank's share of the mean over the global batch."""

    def __init__(self, prefix: str, device: torch.device) -> None:
        """`prefix` stands before the names, e.g. `generator/`."""
        self.prefix = prefix
        self.step = 0
        """The step that the values are of (1 is the first); 0 before there are any."""
        self.values: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        """Of those metrics that have a count of their own."""
        self.skipped_in_a_row = torch.zeros((), device=device)
        self.skipped_since = torch.zeros((), device=device)
        """Updates left out since the last logged line."""

    def begin(self, step: int) -> None:
        """Forget the step before."""
        self.step = step
        self.values, self.counts = {}, {}

    def add_loss(self, loss: Loss, scale: Mapping[str, float]) -> None:
        """Add a micro-batch: `scale` is one over the count, by the loss's names."""
        sums = by_name(loss.sum)
        for name, value in sums.items():
            self.add("loss", value, scale[name])
            if len(sums) > 1:
                self.add(f"{name}_loss", value, scale[name])
        for name, metric in loss.metrics.items():
            if len(sums) > 1 and not isinstance(metric, tuple):
                raise UserError(
                    f"the metric {name!r} of the objective: count() names {', '.join(sums)}, so a metric must say "
                    "what it is divided by; give it as a pair (sum, count)"
                )
            self.add(name, metric, next(iter(scale.values())))

    def add(self, name: str, value: Metric, scale: float) -> None:
        if isinstance(value, tuple):  # with a count of its own
            value, count = value
            self.counts[name] = self.counts.get(name, 0) + count.double()
            scale = 1.0
        self.values[name] = self.values.get(name, 0) + value.detach().double() * scale

    def note_skipped(self, skipped: Tensor) -> None:
        """Of the phase's update: 1 where it was left out (a scalar on the device)."""
        self.skipped_in_a_row = (self.skipped_in_a_row + skipped) * skipped
        self.skipped_since = self.skipped_since + skipped


def reduce_values(
    phases: Iterable[PhaseValues], step: int, sum_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """The values of the phases over the global batch, reduced over ranks, once; called on all ranks together.

    Those of a phase that did not run in `step` say in `<phase>/step` which one they are of.
    """
    phases = list(phases)
    values = {p.prefix + name: value for p in phases for name, value in p.values.items()}
    counts = {p.prefix + name: count for p in phases for name, count in p.counts.items()}
    if not values:
        return {}
    sums = sum_over_ranks(torch.stack([*values.values(), *counts.values()])).tolist()
    totals = dict(zip(counts, sums[len(values) :], strict=True))
    reduced = {name: s / max(totals.get(name, 1.0), 1.0) for name, s in zip(values, sums, strict=False)}
    return reduced | {f"{p.prefix}step": p.step for p in phases if p.step != step}
