"""Model FLOPs: what the forward and backward passes of an objective compute, counted without computing it.

A copy of the objective made of fake tensors (shapes without values) is run under torch's `FlopCounterMode`: matrix
products, convolutions and attention, two operations for a multiply-add. So every family of encoders is counted by what
it does, with decoders, heads and all phases. Recomputed activations do not count: the copy is made before an engine
changes the roles.
"""

from __future__ import annotations

import copy
import logging
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pretrain.engine.initial_weights import give_memory, modules_of
from pretrain.objectives.base import Batch, Objective, Phase, by_name

log = logging.getLogger(__name__)
aten = torch.ops.aten


def step_flops(objective: Objective, batch: Batch) -> float | None:
    """Model FLOPs of one step over `batch`, a phase that runs on every n-th step counting one n-th.

    Args:
        objective: as built, on the CPU or deferred, before an engine prepares it; left as it is, and so is the random
            state.
    Returns:
        None, with a warning, where the objective does what tensors without values cannot (reads one in Python).
    """
    mode = FakeTensorMode()
    try:
        with torch.random.fork_rng(devices=[]):
            with FakeCopyMode(mode):
                fake = copy.deepcopy(objective, {id(objective.dataset): objective.dataset})
            with mode:
                for module in modules_of(fake).values():
                    give_memory(module, torch.device("cpu"))  # that no tensor here really has
            hidden = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
            trainable = {n: [p for p in r.parameters() if p.requires_grad] for n, r in fake.roles.items()}
            fake.begin_step(0, 1)
            return sum(
                phase_flops(mode, fake, phase, hidden, trainable) / phase.every for phase in fake.phases()
            )
    except (
        Exception
    ) as error:  # whatever an objective of somebody's does: a number for people is not worth a run
        log.warning(
            "model FLOPs could not be counted (%s: %s)", type(error).__name__, str(error).split("\n")[0]
        )
        return None


def phase_flops(
    mode: FakeTensorMode, objective: Objective, phase: Phase, batch: Batch, trainable: dict[str, list[Any]]
) -> int:
    """Forward and backward of one phase; only the roles it trains collect gradients."""
    for name, parameters in trainable.items():
        for parameter in parameters:
            parameter.requires_grad_(name in phase.trains)
    with mode, FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        torch.stack(list(by_name(objective.loss(phase, batch).sum).values())).sum().backward()
    return counter.get_total_flops()


def convolution_backward(
    gradient: Any, x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, mask: Any, **_: Any,
) -> int:  # fmt: skip
    """Torch's own formula takes every grouped convolution for a full one; shapes in, FLOPs out."""
    spatial = (x if transposed else gradient)[2:]
    forward = 2 * prod(weight) * x[0] * prod(spatial)
    return forward * (bool(mask[0]) + bool(mask[1]))


def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def attention_backward(_gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Twice the forward pass: that fused kernels compute the scores again is no work of the model."""
    return 2 * int(sdpa_flop_count(q, k, v))


FORMULAS: dict[Any, Any] = {
    aten.convolution_backward: convolution_backward,
    # The CPU's fused attention is missing from torch's table.
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
