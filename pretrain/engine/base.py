"""What the trainer asks of an engine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from pretrain.objectives.base import Batch, Loss, Objective, Phase


@dataclass(frozen=True)
class World:
    """This process among its peers, as `torchrun` tells it through the environment."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        return cls(*(int(os.environ.get(key, default)) for key, default in
                     (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))  # fmt: skip


class Trainee(nn.Module):
    """The roles that one optimizer trains; its forward is the objective's loss.

    One of these is what an engine wraps. So a role may be called any number of times within a step, two roles may
    share a parameter, and a discriminator that merely judges in the generator's phase stays outside.
    """

    def __init__(self, objective: Objective, names: list[str]) -> None:
        super().__init__()
        self.roles = nn.ModuleDict({name: objective.roles[name] for name in names})
        self.objective = objective

    def forward(self, phase: Phase, batch: Batch) -> Loss:
        return self.objective.loss(phase, batch)


def trainees(objective: Objective) -> dict[str, Trainee]:
    """One `Trainee` for every optimizer that the objective's phases name."""
    names: dict[str, list[str]] = {}
    for phase in objective.phases():
        own = names.setdefault(phase.optimizer, [])
        own.extend(name for name in phase.trains if name not in own)
    return {optimizer: Trainee(objective, roles) for optimizer, roles in names.items()}


class Engine(ABC):
    """Wraps roles, runs them backward, steps their optimizers, and hands out their state."""

    world: World
    device: torch.device

    @abstractmethod
    def prepare(self, objective: Objective, build_optimizer: Any) -> None:
        """Move the roles to the device, wrap them and build an optimizer for each trainee.

        Args:
            build_optimizer: (optimizer's name, {role name: module}) → torch optimizer.
        """

    @abstractmethod
    def backward(self, phase: Phase, batch: Batch, scale: float, last: bool) -> Loss:
        """Add the gradient of `scale` × the batch's loss sum; on the `last` micro-batch it is summed over ranks."""

    @abstractmethod
    def step(self, phase: Phase, lr_factor: float, max_norm: float | None) -> tuple[Tensor, Tensor]:
        """Clip, step unless the gradient is not finite, and clear the gradients.

        Returns:
            The gradient's norm before clipping, and 1 where the update was skipped (scalars on the device).
        """

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (any small picklable object), on every rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for every rank."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors of all roles and optimizers under names that do not depend on the engine or the world size."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def save(self, folder: Path) -> None:
        """Write roles and optimizers into an empty folder. Called on all ranks together.

        This is `torch.distributed.checkpoint` (DCP), which every world size loads again; an engine that has a format of
        its own overrides both, and still writes the roles with DCP, so that a release reads every checkpoint alike.
        """
        dcp.save(self.state_dict(), storage_writer=FileSystemWriter(folder), no_dist=self.world.size == 1)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote. Called on all ranks together."""
        state = self.state_dict()
        dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=self.world.size == 1)
        self.load_state_dict(state)

    @abstractmethod
    def close(self) -> None:
        """Leave the process group. Never a collective: the others may be gone."""
