"""Colours of images (B, C, H, W) in [0, 1], changed by one number an image; the formulas are torchvision's.

RGB has a luminance; of any other number of channels the mean stands for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2989, 0.587, 0.114)
"""Of red, green and blue, as torchvision rounds ITU-R 601-2."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""As the order of jitter names them."""


def luminance(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 1, H, W)."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    red, green, blue = image.split(1, dim=1)
    return red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]


def jitter(image: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order of each image.

    Args:
        factors: (B, 4), of which 1, 1, 1, 0 change nothing.
        order: (B, 4), a permutation of the four.
    """
    for turn in order[..., None, None].split(1, dim=1):  # (B, 1, 1, 1)
        factor = factors[..., None, None].gather(1, turn)
        is_hue = (turn == HUE) & (factor != 0)
        blend = torch.where(turn == HUE, 1.0, factor)
        if needed(blend != 1):
            image = (image * blend + blended_with(image, turn) * (1 - blend)).clamp_(0, 1)
        if needed(is_hue):
            image = torch.where(is_hue, turn_hue(image, factor), image)
    return image


def blended_with(image: Tensor, turn: Tensor) -> Tensor:
    """What each image is blended with when it is the turn (B, 1, 1, 1) of brightness, contrast or saturation."""
    if not needed((turn == CONTRAST) | (turn == SATURATION)):
        return torch.zeros_like(turn, dtype=image.dtype)
    grey = luminance(image)  # (B, 1, H, W)
    # Rows first: a sum over whole images would be split among threads, and its bits depend on their number.
    mean = grey.mean(3, keepdim=True).mean(2, keepdim=True)
    return torch.where(turn == SATURATION, grey, torch.where(turn == CONTRAST, mean, 0.0))


def turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    """RGB (B, 3, H, W) with the colour circle turned by so many of its rounds (B, 1, 1, 1)."""
    red, green, blue = image.split(1, dim=1)
    value = image.amax(1, keepdim=True)
    chroma = value - image.amin(1, keepdim=True)
    safe = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        value == red, (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # fmt: skip
    sector = sector + turns * 6  # in sixths of a round
    channels = []
    for start in (5, 3, 1):  # red, green, blue
        k = (start + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, dim=1)


def to_grey(image: Tensor, chosen: Tensor) -> Tensor:
    """The images (B, 1) that are chosen without their colours."""
    if not needed(chosen):
        return image
    return torch.where(chosen[..., None, None], luminance(image), image)


def solarise(image: Tensor, chosen: Tensor) -> Tensor:
    """The images (B, 1) that are chosen with all values from 0.5 on inverted."""
    if not needed(chosen):
        return image
    return torch.where(chosen[..., None, None] & (image >= 0.5), 1 - image, image)


def needed(of_images: Tensor) -> bool:
    """Whether work for some of the images is to be done. Only on a CPU is that looked at: the host waits for a GPU."""
    return of_images.device.type != "cpu" or bool(of_images.any())
