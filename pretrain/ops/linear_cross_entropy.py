"""Cross-entropy of a linear layer's outputs, without ever holding all of them: rows go through in chunks.

For 8,192 tokens and a vocabulary of 50,000 the logits and their gradient would take 3.3 GB in fp32; a chunk of 1,024
takes an eighth. Gradients are computed in the forward pass, while a chunk's logits are there, so nothing is computed
twice (the idea of Liger Kernel, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""A target that counts for nothing (`transformers` and `torch` use the same number)."""
CHUNK = 1024


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """−Σ log softmax(hidden · weightᵀ + bias)[target] over the targets that are not `IGNORE`.

    Args:
        hidden: (N, D).
        weight: (V, D).
        bias: (V,) or None.
        target: (N,) int64.
        chunk: rows whose logits exist at once.
    Returns:
        The loss summed, and how many targets are the likeliest token (no gradient), both scalars in fp32 or better.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, chunk, torch.is_grad_enabled())


@torch.no_grad()
def sample_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, noise: Tensor, chunk: int = CHUNK
) -> Tensor:
    """(N,) int64: for each row the token whose stretch of the cumulated softmax(hidden · weightᵀ + bias) holds `noise`.

    One uniform number a row (N,) in [0, 1) decides, so that a sample's draw can travel with it to whichever rank.
    """
    sampled = []
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = torch.nn.functional.linear(hidden[rows], weight, bias)  # (C, V)
        cumulated = logits.double().softmax(-1).cumsum(-1)
        sought = noise[rows].double().unsqueeze(1) * cumulated[:, -1:]
        sampled.append(torch.searchsorted(cumulated, sought, right=True).squeeze(1))
    return torch.cat(sampled).clamp(max=len(weight) - 1)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int, train: bool
    ) -> tuple[Tensor, Tensor]:
        inputs = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(x, dtype=sum_dtype(x)) if train and x is not None and x.requires_grad else None
            for x in inputs
        ]
        loss = hidden.new_zeros((), dtype=sum_dtype(hidden))
        right = torch.zeros_like(loss)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)  # (C, V), bf16 under autocast
            by_logits = score(logits, target[rows], loss, right)
            add_gradients(gradients, hidden[rows], weight, rows, by_logits)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype if x is not None else None for x in inputs]
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_right: Tensor) -> tuple[Any, ...]:
        scaled = [
            (gradient * grad_loss).to(dtype) if gradient is not None else None
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def score(logits: Tensor, target: Tensor, loss: Tensor, right: Tensor) -> Tensor:
    """Add a chunk's loss and hits to the sums; return the loss's gradient by the logits (C, V), in their precision."""
    log_p = logits.to(sum_dtype(logits)).log_softmax(-1)  # (C, V)
    valid = target != IGNORE
    index = target.clamp(min=0).unsqueeze(1)  # (C, 1)
    loss -= (log_p.gather(1, index).squeeze(1) * valid).sum()
    right += ((log_p.argmax(-1) == target) & valid).sum()
    by_logits = log_p.exp_()
    by_logits.scatter_add_(1, index, by_logits.new_full(index.shape, -1.0))
    return (by_logits * valid.unsqueeze(1)).to(logits.dtype)


def add_gradients(
    gradients: list[Tensor | None], hidden: Tensor, weight: Tensor, rows: slice, by_logits: Tensor
) -> None:
    """Add a chunk's share of the gradients by hidden (its rows), weight and bias."""
    by_hidden, by_weight, by_bias = gradients
    if by_hidden is not None:
        by_hidden[rows] = by_logits @ weight.to(by_logits.dtype)  # (C, D)
    if by_weight is not None:
        by_weight += by_logits.T @ hidden.to(by_logits.dtype)  # (V, D)
    if by_bias is not None:
        by_bias += by_logits.sum(0, dtype=by_bias.dtype)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The precision to sum in: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)
