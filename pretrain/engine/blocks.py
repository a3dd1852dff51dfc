"""What engines do to blocks, from outside: find them, recompute them, compile them, choose their attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedConfig

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig
from pretrain.objectives.base import Objective
from pretrain.ops.attention import FLEX, VARLEN

aten = torch.ops.aten
MATRIX_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}
"""Dear to compute and cheap to keep: what selective activation checkpointing keeps (after torchtitan)."""


ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
"""What the families call the dropout of attention weights."""
FLASH_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that torch's flash kernels run on (Ampere)."""
NARROW = ("bf16", "fp16", "fp8")
"""Precisions whose attention computes in 16 bits."""


def find_blocks(role: nn.Module) -> list[nn.Module]:
    """The repeated layers of a role: what its `blocks()` says, else the items of its outermost module lists.

    An item counts when it is made of other modules and has parameters; a lone linear layer is no block.
    """
    own: Any = getattr(role, "blocks", None)
    if callable(own) and (blocks := own()):
        return list(blocks)
    found: list[nn.Module] = []
    for child in role.children():
        if isinstance(child, nn.ModuleList):
            found += [
                m
                for m in child.children()
                if len(list(m.modules())) > 1 and next(m.parameters(), None) is not None
            ]
        else:
            found += find_blocks(child)
    return found


def recompute_activations(role: nn.Module, mode: str) -> None:
    """Let each block's backward pass compute activations again: all (`full`), or all but matrix products' outputs."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_matrix_products)
    for block in find_blocks(role):
        replace_forward(block, lambda forward: partial(checkpoint, forward, **options))


def keep_matrix_products(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = operation in MATRIX_PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def compile_role(role: nn.Module, mode: str) -> None:
    """`torch.compile` each block of a role (`block`), or the role as one (`whole`, and where it has no blocks)."""
    if mode == "none":
        return
    for module in (find_blocks(role) if mode == "block" else []) or [role]:
        replace_forward(module, torch.compile)


def replace_forward(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change what a module computes with, in place: its name, its hooks and its parameters' names stay."""
    module.forward = change(module.forward)


def choose_attention(train: TrainConfig, objective: Objective) -> str | None:
    """What `train.attention` says; where it says nothing, varlen for text on a GPU that has its kernel.

    Of rows of documents, sdpa takes a dense (B, 1, L, L) mask, which no fused kernel likes. None: the encoder's choice.
    """
    encoder: Any = getattr(objective, "encoder", None)
    if train.attention or getattr(encoder, "modality", None) != "text":
        return train.attention
    config = getattr(encoder.model, "config", None)
    drops = any(getattr(config, name, 0) for name in ATTENTION_DROPOUT)
    return VARLEN if has_varlen_kernel(train.precision) and not drops else None


def has_varlen_kernel(precision: str) -> bool:
    """Whether this machine's GPU runs torch's varlen flash kernel in `precision`."""
    narrow = precision in NARROW
    return narrow and torch.cuda.is_available() and torch.cuda.get_device_capability() >= FLASH_CAPABILITY


def set_attention(role: nn.Module, backend: str) -> None:
    """Choose the attention back end of every `transformers` layer in a role, decoders of our own included."""
    name = {"flex": FLEX, "varlen": VARLEN}.get(backend, backend)
    for module in role.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            check_attention_dropout(config, backend)
            config._attn_implementation = name


def check_attention_dropout(config: PreTrainedConfig, backend: str) -> None:
    """Raise a `UserError` where a back end without dropout would have to drop attention weights."""
    if backend not in ("flex", "varlen"):
        return
    for name in ATTENTION_DROPOUT:
        if probability := getattr(config, name, 0):
            raise UserError(
                f"encoder.{name}={probability}: train.attention={backend} has no dropout; "
                "make it 0, or use train.attention=sdpa"
            )


def check_attention(backend: str | None, precision: str) -> None:
    """Raise a `UserError` where this machine cannot run an attention back end."""
    place = f"train.attention={backend}"
    if not torch.cuda.is_available():
        if backend == "flex":
            raise UserError(f"{place}: needs an NVIDIA GPU, and this machine shows none; use sdpa or varlen")
        return
    if backend == "varlen" and precision not in NARROW:
        raise UserError(
            f"{place}: on a GPU computes in 16 bits, not in train.precision={precision}; use bf16"
        )
    if backend == "varlen" and torch.cuda.get_device_capability() < FLASH_CAPABILITY:
        raise UserError(f"{place}: its kernel needs an Ampere GPU or a newer one; use sdpa")
