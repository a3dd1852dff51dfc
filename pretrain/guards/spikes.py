"""The gradient-spike guard: an update far outside what was usual is left out, decided on the device."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 128
"""Steps whose gradient norms are remembered."""


class SpikeGuard:
    """Tells when a gradient norm lies more than `sigma` deviations above the mean of the last `WINDOW` ones.

    After OLMo-core's skip-step optimizers (6 σ over 128 steps; OLMo 2, arXiv:2501.00656). Two things differ: only the
    norm is looked at, and a spike is remembered as no larger than the limit that it broke, so that one outlier does not
    blind the guard to the next, while a lasting change is followed. Norms are remembered when nothing is guarded too,
    so the guard can be switched on in mid-run.
    """

    def __init__(self, sigma: float | None, device: torch.device) -> None:
        self.sigma = sigma
        self.norms = torch.zeros(WINDOW, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def check(self, norm: Tensor) -> Tensor:
        """Whether `norm` (scalar) is a spike: a boolean scalar. Remembers it; one that is not finite is no spike."""
        places = torch.arange(WINDOW, device=norm.device)
        remembered = places < self.seen  # (WINDOW,)
        number = remembered.sum().clamp(min=1)
        mean = self.norms.sum() / number
        deviation = (((self.norms - mean) ** 2 * remembered).sum() / number).sqrt()
        # Half a window must be known first: a young run's norms fall steeply.
        known = self.seen >= WINDOW // 2
        limit = torch.where(known, mean + (self.sigma or torch.inf) * deviation.clamp(min=1e-12), torch.inf)
        finite = norm.isfinite()
        here = (places == self.seen % WINDOW) & finite
        self.norms.copy_(torch.where(here, torch.minimum(norm.float(), limit), self.norms))
        self.seen += finite
        return finite & (norm > limit)

    def state_dict(self) -> dict[str, Tensor]:
        return {"norms": self.norms, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.norms.copy_(state["norms"])
        self.seen.copy_(state["seen"])
