"""Distributed data parallel: every rank holds everything; gradients are averaged. One process is a world of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.config.sections import TrainConfig
from pretrain.engine.base import Trainee, World
from pretrain.engine.config import DDPConfig
from pretrain.engine.torch_engine import TorchEngine
from pretrain.objectives.base import Phase

KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
"""No copying of rank 0's buffers before each forward pass: they are the same everywhere."""
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel.__init__).parameters:
    KEEP_BUFFERS = {"broadcast_buffers": False}  # as torch 2.11 calls it


class DDPEngine(TorchEngine):
    """`torch.nn.parallel.DistributedDataParallel` around each optimizer's roles."""

    def __init__(self, train: TrainConfig, world: World | None = None, ddp: DDPConfig | None = None) -> None:
        super().__init__(train, world)
        self.ddp = ddp or DDPConfig()

    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        if self.world.size == 1:
            return trainee
        # Phases that share an optimizer need not reach the same parameters (a gradient penalty has no last bias).
        one_phase = self.one_phase(optimizer)
        share = self.train.global_batch_size // self.world.size
        accumulates = (self.train.micro_batch_size or share) != share or bool(self.train.batch_size_warmup)
        static = one_phase and not accumulates if self.ddp.static_graph is None else self.ddp.static_graph
        return DistributedDataParallel(
            trainee,
            gradient_as_bucket_view=True,
            find_unused_parameters=not one_phase and not static,
            static_graph=static,
            **KEEP_BUFFERS,
        )

    @contextmanager
    def accumulating(self, phase: Phase, last: bool) -> Iterator[None]:
        wrapped = self.wrapped[phase.optimizer]
        if last or not isinstance(wrapped, DistributedDataParallel):
            yield
        else:
            with wrapped.no_sync():
                yield
