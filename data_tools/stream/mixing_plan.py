"""Weights of a mixture as a run plans them: by the sizes of its sources, and by how often each may be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.order.weights import cap_shares, temper_weights

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class MixingPlan:
    """What the weights are made of; a mixture keeps it in its state, so that a resumed run plans only what changed."""

    weights: Mapping[str, float]
    """As given, by source."""
    positions: int
    """Samples or rows of the whole run."""
    temperature: float | None = None
    """Weights are multiplied by size to this power: samples, or tokens where weights are shares of tokens."""
    max_repeats: float | None = None
    """How often a source may be gone through in the whole run; what its share would be beyond goes to the others."""

    def state(self) -> dict[str, Any]:
        return asdict(self)


def plan_shares(
    plan: MixingPlan, sizes: Float64Array, tokens: Float64Array, taken: NDArray[np.int64]
) -> Float64Array:
    """The share of each source of the positions that are left, (sources,).

    Args:
        sizes: positions of each source in one epoch of it.
        tokens: of one position of each source; 1 where weights are shares of samples.
        taken: positions of each source that were taken already.
    Raises:
        UserError: all sources, repeated as often as they may be, are less than the run takes.
    """
    weights = np.array(list(plan.weights.values()), dtype=np.float64)
    if plan.temperature is not None:
        weights = temper_weights(weights, sizes * tokens, plan.temperature)
    shares = weights / tokens
    shares /= shares.sum()
    left = plan.positions - int(taken.sum())
    if plan.max_repeats is None or left <= 0:
        return shares
    most = (plan.max_repeats * sizes - taken) / left
    capped = cap_shares(shares, most)
    if capped is None:
        raise UserError(
            f"data.max_repeats={plan.max_repeats:g}: the run takes {left:,} samples, its sources have "
            f"{int(most.clip(min=0).sum() * left):,} with their repeats; take fewer steps, or allow more repeats"
        )
    return capped
