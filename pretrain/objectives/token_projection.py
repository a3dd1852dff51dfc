"""All tokens of an image at once → a vector: an autoencoder's bottleneck, a discriminator's verdict."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TokenProjection(nn.Module):
    """One linear layer on the tokens of all patches; a class token is left out."""

    def __init__(self, encoder: Any, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(encoder.num_patches * encoder.dim, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, [1 +] N, D) → (B, outputs)."""
        patches = tokens[:, -(self.project.in_features // tokens.shape[2]) :]  # (B, N, D)
        return self.project(patches.flatten(1))
