"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682), by its authors' library."""

from __future__ import annotations

from typing import Any

import torch

from data_tools.errors import UserError

try:
    from schedulefree import AdamWScheduleFree
except ImportError:
    raise UserError(
        'optimizer.name=schedule_free: schedulefree is not installed; pip install "masquerade[schedulefree]"'
    ) from None


class ScheduleFree(AdamWScheduleFree):
    """Trains at a point y between the steps z and their average x, which is what to evaluate and to release.

    `eval()` puts x in the parameters, `train()` puts y back.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        # Here rather than in the first step, which may be left out, and which would count when it only initialises.
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "z": parameter.detach().clone(),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        self.train()

    def step(self, closure: None = None) -> None:
        """One step, unless it is to be left out: the library counts on the host, which has to ask the device."""
        found = getattr(self, "found_inf", None)
        if found is None or not found.item():
            super().step()
