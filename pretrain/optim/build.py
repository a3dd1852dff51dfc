"""Parameter groups by rule, and the optimizer over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pretrain.config import OptimizerConfig
from pretrain.encoders.base import Encoder


def build_optimizer(roles: dict[str, nn.Module], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters of `roles`, in groups of equal decay and equal learning-rate ratio.

    Each group keeps its share of the peak learning rate in `lr_ratio`, which the trainer multiplies by the schedule.
    """
    device = next(p for role in roles.values() for p in role.parameters()).device
    return torch.optim.AdamW(
        parameter_groups(roles, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),
    )


def parameter_groups(roles: dict[str, nn.Module], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by (weight decay, learning-rate ratio), in a fixed order.

    Vectors and scalars (biases, norms), tokens and embeddings are not decayed, as in BEiT's and MAE's fine-tuning code.
    A parameter that two roles share is taken once.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for role in roles.values():
        ratios = layer_ratios(role, config.layer_decay)
        embeddings = {id(m.weight) for m in role.modules() if isinstance(m, nn.Embedding)}
        for name, parameter in role.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decayed = parameter.ndim >= 2 and not is_token(name) and id(parameter) not in embeddings
            key = (config.weight_decay if decayed else 0.0, ratios.get(id(parameter), 1.0))
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_ratio": ratio}
        for (decay, ratio), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def is_token(name: str) -> bool:
    """Learned tokens and positions have two or more dimensions but are no matrices."""
    return name.endswith(("cls_token", "mask_token", "position_embeddings"))


def layer_ratios(role: nn.Module, decay: float | None) -> dict[int, float]:
    """Learning-rate ratio by parameter id: decay^(distance from the top); what precedes the blocks lies one below.

    Only encoders have blocks; everything else learns at full rate (BEiT, arXiv:2106.08254).
    """
    if decay is None or not isinstance(role, Encoder) or not role.blocks():
        return {}
    blocks = role.blocks()
    depth = len(blocks)
    ratios = {id(p): decay ** (depth + 1) for p in role.parameters()}
    for i, block in enumerate(blocks):
        ratios |= {id(p): decay ** (depth - i) for p in block.parameters()}
    return ratios | {id(p): 1.0 for module in role.after_blocks() for p in module.parameters()}
