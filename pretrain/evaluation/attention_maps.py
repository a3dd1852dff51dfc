"""Where a ViT looks: the weights of its last attention, which fused kernels never write down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

RECORDED = "recorded"
"""The name under which `transformers` knows the attention that keeps its weights."""


@contextmanager
def recorded_attention(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the encoder's `transformers` layers attend eagerly; the newest weights (B, H, L, L) are in the list.

    Compiled modules run as they are written meanwhile. Afterwards all is as it was.
    """
    kept: list[Tensor] = []

    def attend(
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_options: Any,
    ) -> tuple[Tensor, Tensor]:
        """(B, H, L, D) → (B, L, H, D), as `transformers` calls it; a mask is added to the scores."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query.float() @ key.float().transpose(-1, -2) * scale  # (B, H, L, L)
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
        kept[:] = [weights]
        return (weights.to(value.dtype) @ value).transpose(1, 2), weights

    AttentionInterface.register(RECORDED, attend)
    configs = [getattr(module, "config", None) for module in encoder.modules()]
    found = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}
    before = [(config, config._attn_implementation) for config in found.values()]
    try:
        for config, _ in before:
            config._attn_implementation = RECORDED
        with torch.compiler.set_stance("force_eager"):
            yield kept
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def attention_to_patches(weights: Tensor, lead: int) -> Tensor:
    """How much each patch is looked at, (B, H, L, L) → (B, H, N): by the class token, which is the first of `lead`
    tokens, or by all patches on the average where there is none."""
    return weights[:, :, 0, lead:] if lead else weights.mean(2)
