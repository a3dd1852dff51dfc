"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states in shards, gathered block by block.

Each optimizer's `Trainee` is a root; its blocks are sharded one by one, and all that is left belongs to the root: so a
parameter that two of its roles share stays one parameter. Roles are also called where their root is not: the
discriminator within the generator's phase, the encoder for a probe; there `whole` gathers what the root holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import Trainee, World
from pretrain.engine.blocks import find_blocks
from pretrain.engine.config import DistributedConfig, FSDPConfig
from pretrain.engine.torch_engine import TorchEngine
from pretrain.objectives.base import Phase


class FSDPEngine(TorchEngine):
    """`torch.distributed.fsdp.fully_shard`; with `hsdp` replicas, sharded within and replicated across them."""

    needs_group = True

    def __init__(
        self,
        train: TrainConfig,
        fsdp: FSDPConfig | None = None,
        distributed: DistributedConfig | None = None,
    ) -> None:
        self.fsdp = fsdp or FSDPConfig()
        self.refuse_uneven_replicas(World.from_environment())
        super().__init__(train, distributed=distributed)
        self.mesh = self.make_mesh()

    def refuse_uneven_replicas(self, world: World) -> None:
        replicas = self.fsdp.hsdp
        if replicas < 1 or world.size % replicas:
            raise UserError(
                f"fsdp.hsdp={replicas}: {world.size} ranks do not make {replicas} equal replicas; "
                "give a divisor of the number of ranks"
            )

    def make_mesh(self) -> DeviceMesh:
        kind, replicas, ranks = self.device.type, self.fsdp.hsdp, self.world.size
        if replicas == 1:
            return init_device_mesh(kind, (ranks,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (replicas, ranks // replicas), mesh_dim_names=("replicate", "shard"))

    def shard(self, module: nn.Module, reshard_after_forward: bool) -> FSDPModule:
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.fsdp.cpu_offload else None
        # A phase in fp32 needs the weights in fp32 too: then autocast alone narrows them, after gathering. So it is
        # on a CPU, whose norms refuse narrow weights beside wide activations (a GPU's autocast widens both).
        wide = self.device.type == "cpu" or any(phase.fp32 for phase in self.objective.phases())
        narrow = None if wide else self.autocast
        policy = MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
        )
        return fully_shard(
            module,
            mesh=self.mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=policy,
            offload_policy=offload or OffloadPolicy(),
        )

    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        for role in trainee.roles.values():
            for block in find_blocks(role):
                self.shard(block, self.fsdp.reshard_after_forward)
        self.shard(trainee, reshard_after_forward=False)
        register_fsdp_forward_method(trainee, "begin")
        with torch.no_grad():
            trainee.begin()  # whichever module of a tree is called first is its root for good: this one
        cast(FSDPModule, trainee).reshard()
        return trainee

    def wrap_untrained(self, role: nn.Module) -> None:
        # Sharded as the trained role it follows is: an average is taken shard by shard.
        for block in find_blocks(role):
            self.shard(block, reshard_after_forward=True)
        self.shard(role, reshard_after_forward=True)

    @contextmanager
    def accumulating(self, phase: Phase, last: bool) -> Iterator[None]:
        own = self.roots[phase.optimizer]
        own.set_requires_gradient_sync(last)
        with self.gathered([root for root in self.roots.values() if root is not own]), self.kept(phase):
            yield

    @contextmanager
    def kept(self, phase: Phase) -> Iterator[None]:
        """In a phase that differentiates twice, what one backward pass has used stays gathered for the other."""
        if not phase.fp32:
            yield
            return
        sharded = [module for root in self.roots.values() for module in sharded_modules(root)]
        for module in sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.set_reshard_after_backward(False, recurse=False)
        yield
        for module in sharded:
            is_root = module in self.roots.values()
            module.set_reshard_after_forward(not is_root and self.fsdp.reshard_after_forward, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()

    @property
    def roots(self) -> dict[str, Any]:
        return self.wrapped

    @contextmanager
    def gathered(self, roots: list[Any]) -> Iterator[None]:
        """Within it, the roots' own parameters are whole; their blocks gather themselves when called.

        Nothing stays gathered afterwards: no backward pass would free it before the next update makes it stale.
        """
        with ExitStack() as stack:
            for root in roots:
                root.unshard()
                for module in sharded_modules(root):
                    stack.callback(module.reshard)
            yield

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        with self.gathered(list(self.roots.values())):
            yield


def sharded_modules(root: nn.Module) -> list[FSDPModule]:
    """The root and its blocks."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]
