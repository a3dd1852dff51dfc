"""Counts are exact where float32 has no room for them any more, above 2^24 = 16,777,216."""

from __future__ import annotations

import torch

from pretrain.engine.counts import StepCounts
from pretrain.metering.phase_values import PhaseValues
from pretrain.objectives.base import Loss, Phase
from pretrain.ops.world import World

MANY = 2**24


class Counting:
    """Of an objective, what counts are read off."""

    def count(self, _phase, batch):
        return float(batch["count"])


def test_a_step_counts_past_16_million_one_by_one():
    batches = [{"count": MANY}, {"count": 1}]
    phase = Phase("main", ("encoder",))
    counts = StepCounts(World(), Counting(), [phase], batches, samples=2, asked_to_stop=False)
    assert counts.of(phase) == {"loss": MANY + 1}


def test_metrics_with_a_count_of_their_own_do_too():
    values = PhaseValues("", torch.device("cpu"))
    for count in (MANY, 1):
        metric = torch.tensor(float(count)), torch.tensor(float(count))
        values.add_loss(Loss(torch.tensor(0.0), {"accuracy": metric}), {"loss": 1.0})
    assert values.counts["accuracy"].item() == values.values["accuracy"].item() == MANY + 1
