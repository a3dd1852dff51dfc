"""Distributed data parallel: every rank holds everything; gradients are averaged. One process is a world of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data_tools.errors import OneRankError, UserError
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import Scale, Trainee, World
from pretrain.engine.config import DDPConfig, DistributedConfig
from pretrain.engine.torch_engine import TorchEngine
from pretrain.objectives.base import Batch, Loss, Phase

UNUSED_PARAMETERS = (
    "Expected to have finished reduction in the prior iteration",
    "Your training graph has changed",
)
"""What torch says when a parameter is used in some steps and not in others."""

KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
"""No copying of rank 0's buffers before each forward pass: they are the same everywhere."""
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel.__init__).parameters:
    KEEP_BUFFERS = {"broadcast_buffers": False}  # as torch 2.11 calls it


class DDPEngine(TorchEngine):
    """`torch.nn.parallel.DistributedDataParallel` around each optimizer's roles."""

    def __init__(
        self,
        train: TrainConfig,
        world: World | None = None,
        ddp: DDPConfig | None = None,
        distributed: DistributedConfig | None = None,
    ) -> None:
        super().__init__(train, world, distributed)
        self.ddp = ddp or DDPConfig()
        if self.ddp.find_unused_parameters and self.ddp.static_graph:
            raise UserError(
                "ddp.find_unused_parameters and ddp.static_graph: a graph whose parameters come and go is not "
                "static; set one of them"
            )

    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        if self.world.size == 1:
            return trainee
        # Phases that share an optimizer need not reach the same parameters (a gradient penalty has no last bias).
        one_phase = self.one_phase(optimizer)
        share = self.train.global_batch_size // self.world.size
        accumulates = (self.train.micro_batch_size or share) != share or bool(self.train.batch_size_warmup)
        unused = self.ddp.find_unused_parameters
        sure = one_phase and not accumulates and not unused
        static = sure if self.ddp.static_graph is None else self.ddp.static_graph
        return DistributedDataParallel(
            trainee,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused or (not one_phase and not static),
            static_graph=static,
            **KEEP_BUFFERS,
        )

    def backward(self, phase: Phase, batch: Batch, scale: Scale, last: bool) -> Loss:
        try:
            return super().backward(phase, batch, scale, last)
        except RuntimeError as error:
            if any(text in str(error) for text in UNUSED_PARAMETERS):
                raise OneRankError(
                    f"engine=ddp: the phase {phase.name!r} does not use the same parameters in every step, and "
                    "ranks wait for their gradients in vain; set ddp.find_unused_parameters=true"
                ) from None
            raise

    @contextmanager
    def accumulating(self, phase: Phase, last: bool) -> Iterator[None]:
        wrapped = self.wrapped[phase.optimizer]
        if last or not isinstance(wrapped, DistributedDataParallel):
            yield
        else:
            with wrapped.no_sync():
                yield
