"""Distributed data parallel: every rank holds everything; gradients are averaged. One process is a world of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from pretrain.engine.base import Engine, Trainee, World, trainees
from pretrain.objectives.base import Batch, Loss, Objective, Phase

TIMEOUT = timedelta(minutes=10)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class DDPEngine(Engine):
    """`torch.nn.parallel.DistributedDataParallel` around each optimizer's roles."""

    def __init__(self, precision: str, world: World | None = None) -> None:
        """`world` defaults to what the launcher says; pass `World()` to train alone inside a larger job."""
        self.world = world or World.from_environment()
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", self.world.local_rank) if cuda else torch.device("cpu")
        self.autocast = precision == "bf16"
        self.started_group = False
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
            self.started_group = True

    def prepare(
        self,
        objective: Objective,
        build_optimizer: Callable[[str, dict[str, nn.Module]], torch.optim.Optimizer],
    ) -> None:
        self.objective = objective
        for role in objective.roles.values():
            role.to(self.device)
        self.trainable = {
            name: [p for p in m.parameters() if p.requires_grad] for name, m in objective.roles.items()
        }
        self.trainees = trainees(objective)
        self.optimizers = {
            name: build_optimizer(name, dict(t.roles.items())) for name, t in self.trainees.items()
        }
        self.wrapped = {name: self.wrap(name, trainee) for name, trainee in self.trainees.items()}

    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        if self.world.size == 1:
            return trainee
        # Phases that share an optimizer need not reach the same parameters (a gradient penalty has no last bias).
        one_phase = sum(phase.optimizer == optimizer for phase in self.objective.phases()) == 1
        return DistributedDataParallel(
            trainee,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=not one_phase,
        )

    def backward(self, phase: Phase, batch: Batch, scale: float, last: bool) -> Loss:
        self.train_only(phase)
        trainee = self.wrapped[phase.optimizer]
        alone = isinstance(trainee, Trainee) or last
        with contextlib.nullcontext() if alone else trainee.no_sync():  # type: ignore[operator]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast and not phase.fp32):
                loss = trainee(phase, batch)
            # DDP averages over ranks, and the scale is for the sum.
            (loss.sum * (scale * self.world.size)).backward()
        return Loss(loss.sum.detach(), loss.metrics)

    def train_only(self, phase: Phase) -> None:
        """Let only the phase's roles collect gradients: the others merely pass them on."""
        if len(self.trainees) > 1:
            for name, parameters in self.trainable.items():
                for parameter in parameters:
                    parameter.requires_grad_(name in phase.trains)

    def step(self, phase: Phase, lr_factor: float, max_norm: float | None) -> tuple[Tensor, Tensor]:
        optimizer = self.optimizers[phase.optimizer]
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        skipped = (~norm.isfinite()).float()
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * group["lr_ratio"] * lr_factor
        # The fused kernels leave everything as it is where found_inf is 1, without asking the host.
        optimizer.found_inf = skipped  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        return norm, skipped

    def sum(self, values: Tensor) -> Tensor:
        if self.world.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        if self.world.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.world.size > 1:
            dist.barrier()

    def state_dict(self) -> dict[str, Any]:
        roles = {name: module.state_dict() for name, module in self.objective.roles.items()}
        optimizers = {
            name: get_optimizer_state_dict(self.trainees[name], optimizer, options=FLAT)
            for name, optimizer in self.optimizers.items()
        }
        return {"roles": roles, "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self.objective.roles.items():
            module.load_state_dict(state["roles"][name])
        for name, optimizer in self.optimizers.items():
            set_optimizer_state_dict(self.trainees[name], optimizer, state["optimizers"][name], options=FLAT)

    def close(self) -> None:
        if self.started_group:
            dist.destroy_process_group()
