"""What every layer of an encoder makes of a batch, from one forward pass, pooled in several ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.base import Encoder

POOLINGS = ("own", "first", "max")
"""The encoder's own, its first token (a class token where the family has one), the largest value over its tokens."""


def pooled_layers(encoder: Encoder, batch: dict[str, Any]) -> dict[tuple[int, str], Tensor]:
    """By (layer, pooling), one vector a sample (B, D of the layer). Layers count from 1; the last is the output."""
    return {
        (layer, pooling): pool(encoder, tokens, batch, pooling)
        for layer, tokens in enumerate(layer_tokens(encoder, batch), start=1)
        for pooling in POOLINGS
    }


def layer_tokens(encoder: Encoder, batch: dict[str, Any]) -> list[Tensor]:
    """Tokens (B, N, D) after each block, the last one's as the encoder gives them: behind its final norm.

    Raises:
        UserError: the blocks cannot be listened to.
    """
    blocks = encoder.blocks()
    with listening(blocks) as heard:
        tokens = encoder(batch)
    if len(heard) != len(blocks):
        raise UserError(
            f"probe.grid: {len(heard)} of {len(blocks)} layers could be listened to; set train.compile to none or block"
        )
    return [*map(as_tokens, heard[:-1]), tokens]


@contextmanager
def listening(blocks: list[nn.Module]) -> Iterator[list[Any]]:
    """Within it, what each block gives is kept, in the order of their calls."""
    heard: list[Any] = []
    handles = [block.register_forward_hook(lambda _block, _args, out: heard.append(out)) for block in blocks]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def as_tokens(output: Any) -> Tensor:
    """What a block gave, as (B, N, D): a feature map (B, D, h, w) row by row, a vector (B, D) as one token."""
    x: Tensor = output[0] if isinstance(output, tuple) else output
    if x.ndim == 4:
        return x.flatten(2).transpose(1, 2)
    return x.unsqueeze(1) if x.ndim == 2 else x


def pool(encoder: Encoder, tokens: Tensor, batch: dict[str, Any], pooling: str) -> Tensor:
    """Tokens (B, N, D) → (B, D), see `POOLINGS`; padding has no part in it."""
    if pooling == "own":
        return encoder.pool(tokens, batch)
    if pooling == "first":
        return tokens[:, 0]
    valid = encoder.find_valid(batch).to(tokens.device)  # (B, N), or (B,) where whole samples are valid
    if valid.ndim == 1:
        return tokens.amax(1)
    return tokens.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1).nan_to_num(neginf=0.0)
