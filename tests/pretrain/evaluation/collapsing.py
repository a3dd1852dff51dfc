"""Encoders and objectives that collapse, for tests of the warning."""

from __future__ import annotations

import torch

from pretrain.encoders.image.vit import ViTEncoder
from tests.distributed.interface_objectives import Taught


class Constant(ViTEncoder):
    """Says the same of every picture."""

    def forward(self, batch, ids_keep=None, **hidden):
        tokens = super().forward(batch, ids_keep, **hidden)
        return tokens * 0 + torch.arange(1.0, 1 + tokens.shape[2])


class Uncentred(Taught):
    """A student of its own average, which nothing keeps from saying the same of every picture."""

    product = "encoder"
