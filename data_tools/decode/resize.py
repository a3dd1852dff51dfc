"""Resizing images fast: torch's antialiased uint8 kernels take a quarter of Pillow's time and free the GIL."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize(image: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 image (H, W, C) to uint8 (C, height, width), bilinear with antialiasing."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, C, H, W), channels last in memory
    return F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)[0]
