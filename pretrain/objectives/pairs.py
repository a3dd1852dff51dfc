"""Which objective runs on which encoder: objectives say what they need, encoders what they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data_tools.errors import UserError

if TYPE_CHECKING:
    from pretrain.encoders.base import Encoder
    from pretrain.objectives.base import Objective

CAPABILITIES = {
    "images": "images",
    "text": "text",
    "dropped": "patches that can be left out",
    "masked": "places that can be hidden",
    "bidirectional": "text seen from both sides",
    "causal": "text seen from the left",
    "embedded": "embeddings that a generator can share",
}
"""What encoders may give. `dropped` is before the first block; `masked` places have a token or a colour instead;
`embedded` are tokens and positions alone, for another network's blocks."""


def find_obstacle(objective: type[Objective], encoder: type[Encoder]) -> str | None:
    """Why the pair cannot be, or None: what the objective needs, and why the encoder does not give it."""
    for capability, reason in objective.needs.items():
        if capability not in encoder.gives:
            lack = encoder.lacks.get(capability)
            return f"{reason}, but {lack}" if lack else reason
    return None


def check_pair(objective: Objective, encoder: Any) -> None:
    """Raise a `UserError` for a pair that cannot be, naming those nearest to it that can."""
    obstacle = find_obstacle(type(objective), type(encoder))
    if obstacle:
        raise UserError(
            f"encoder.name={encoder.config.name!r}: {obstacle}; use {' or '.join(nearest_pairs(objective, encoder))}"
        )


def nearest_pairs(objective: Objective, encoder: Any) -> list[str]:
    """Other encoders for this objective; for this encoder, the objective most like this one."""
    from pretrain.encoders import ENCODERS
    from pretrain.objectives import OBJECTIVES

    fitting = [name for name, other in ENCODERS.items() if find_obstacle(type(objective), other) is None]
    *most, last = fitting
    found = [f"encoder.name={', '.join(most)} or {last}" if most else f"encoder.name={last}"]
    for name in type(objective).alternatives:
        if name in OBJECTIVES and find_obstacle(OBJECTIVES[name], type(encoder)) is None:
            return [*found, f"objective.name={name}"]
    return found


def all_pairs() -> Mapping[str, Mapping[str, str | None]]:
    """By objective and encoder, what `find_obstacle` says of every pair that has a name."""
    from pretrain.encoders import ENCODERS
    from pretrain.objectives import OBJECTIVES

    return {
        name: {other: find_obstacle(objective, encoder) for other, encoder in ENCODERS.items()}
        for name, objective in OBJECTIVES.items()
    }
