"""A codebook: vectors, one of which stands for each place of a feature map (van den Oord et al. 2017, appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTHING = 1e-5
"""Added to how often a code was chosen (Laplace), as in the authors' code."""


class Codebook(nn.Module):
    """K codes of width E. They are parameters that a loss moves, or means of the vectors that chose them lately.

    Those means are kept as what they are made of: how often a code was chosen (`sizes`), and the sum of what chose it
    (`sums`), both averaged exponentially over steps.
    """

    parameter: nn.Parameter
    sizes: Tensor
    sums: Tensor
    chosen: Tensor

    def __init__(self, size: int, width: int, averaged: bool) -> None:
        super().__init__()
        self.averaged = averaged
        if averaged:
            self.register_buffer("sizes", torch.ones(size))
            self.register_buffer("sums", torch.empty(size, width))
            nn.init.normal_(self.sums)
        else:
            self.parameter = nn.Parameter(torch.empty(size, width))
            nn.init.normal_(self.parameter)
        # How often each was chosen in the last step that was made.
        self.register_buffer("chosen", torch.zeros(size))

    @property
    def codes(self) -> Tensor:
        """(K, E)."""
        if not self.averaged:
            return self.parameter
        total = self.sizes.sum()
        smoothed = (self.sizes + SMOOTHING) / (total + len(self.sizes) * SMOOTHING) * total
        return self.sums / smoothed.unsqueeze(1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, E) → the nearest code of each (B, N, E) and its number (B, N); no gradient for the vectors.

        Distances are computed in fp32 in every precision: rounding would choose other codes.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            codes, x = self.codes.float(), vectors.detach().float()
            distances = codes.detach().pow(2).sum(1) - 2 * x @ codes.detach().T  # (B, N, K), but for |x|²
            numbers = distances.argmin(2)
            return F.embedding(numbers, codes), numbers

    @torch.no_grad()
    def move(
        self,
        counts: Tensor,
        sums: Tensor,
        fresh: Tensor,
        weight: float,
        restart_below: float,
        skipped: Tensor,
    ) -> None:
        """Let the means follow what a step has chosen, and put dead codes elsewhere. The same on every rank.

        Args:
            counts: how often each code was chosen (K,), over the global batch.
            sums: what chose it (K, E).
            fresh: vectors of the batch (F, E), the first of which become the codes that are dead, by their number.
            weight: of this step, in (0, 1].
            restart_below: a code is dead where its size is below this share of the mean size.
            skipped: 1 where the step was left out, and nothing moves.
        """
        made = skipped == 0
        self.keep_counts(counts, skipped)
        new_sizes, new_sums = self.sizes.lerp(counts, weight), self.sums.lerp(sums, weight)
        alive_from = restart_below * new_sizes.mean()
        dead = new_sizes < alive_from  # (K,)
        turn = dead.cumsum(0) - 1  # the how-manieth of the dead
        replaced = dead & (turn < len(fresh))
        replacement = fresh.index_select(0, turn.clamp(0, len(fresh) - 1))  # (K, E)
        new_sizes = torch.where(replaced, alive_from, new_sizes)
        new_sums = torch.where(replaced.unsqueeze(1), replacement * alive_from, new_sums)
        # Not by blending, which would let NaN through.
        self.sizes.copy_(torch.where(made, new_sizes, self.sizes))
        self.sums.copy_(torch.where(made, new_sums, self.sums))

    @torch.no_grad()
    def keep_counts(self, counts: Tensor, skipped: Tensor) -> None:
        """Remember how often each code was chosen in a step (K,), unless that was left out."""
        self.chosen.copy_(torch.where(skipped == 0, counts, self.chosen))

    def describe_use(self) -> dict[str, Tensor]:
        """Of the last step: the perplexity of its codes, from 1 (one alone) to K (all alike), and the used share."""
        share = self.chosen / self.chosen.sum().clamp(min=1)
        entropy = -torch.xlogy(share, share).sum()
        return {"codebook_perplexity": entropy.exp(), "used_codes": (self.chosen > 0).float().mean()}
