"""Losses are computed in at least fp32, whatever autocast has made of the activations."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """16-bit floats as fp32; anything wider as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
