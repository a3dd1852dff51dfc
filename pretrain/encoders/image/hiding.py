"""How an encoder of images hides places: as colours before it, or as tokens behind its patch embeddings (SimMIM).

A mask is (B, h, w), true where the image is hidden, on any grid of cells that fill the image.
"""

from __future__ import annotations

from torch import Tensor

from data_tools.errors import UserError


def hide_pixels(pixels: Tensor, mask: Tensor | None, colour: Tensor | None = None) -> Tensor:
    """Normalised pixels (B, C, H, W) with one colour (C,) in all hidden places; None: the mean colour, zero."""
    if mask is None:
        return pixels
    hidden = enlarge_mask(mask, (pixels.shape[2], pixels.shape[3])).unsqueeze(1)  # (B, 1, H, W)
    if colour is None:
        return pixels.masked_fill(hidden, 0)
    return colour.to(pixels.dtype).view(1, -1, 1, 1).where(hidden, pixels)


def hide_tokens(tokens: Tensor, mask: Tensor | None, token: Tensor, grid: tuple[int, int]) -> Tensor:
    """Embedded patches (B, N, D) of a grid of N = rows · columns, with one token (D,) in all hidden places."""
    if mask is None:
        return tokens
    hidden = enlarge_mask(mask, grid).flatten(1).unsqueeze(2)  # (B, N, 1)
    return token.to(tokens.dtype).where(hidden, tokens)


def enlarge_mask(mask: Tensor, sizes: tuple[int, int]) -> Tensor:
    """(B, h, w) → (B, H, W), each cell repeated.

    Raises:
        UserError: H and W are no multiples of h and w.
    """
    height, width = mask.shape[1:]
    if sizes[0] % height or sizes[1] % width:
        raise UserError(
            f"a mask of {height}×{width} cells does not fill {sizes[0]}×{sizes[1]} places; choose "
            "objective.mask_patch_size as a multiple of the encoder's patch"
        )
    return mask.repeat_interleave(sizes[0] // height, 1).repeat_interleave(sizes[1] // width, 2)
