"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states in shards, gathered block by block.

Each optimizer's `Trainee` is a root; its blocks, large embeddings and heads are sharded one by one, and all that is
left belongs to the root: so a parameter that two of its roles share stays one parameter. Roles are also called where
their root is not: the discriminator within the generator's phase, the encoder for a probe; there `gathered` gathers
what the root holds.
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
from pretrain.engine.initial_weights import InitialWeights, give_memory
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
        self.apart: dict[str, list[Any]] = {}
        """By optimizer, the embeddings and heads that are sharded by themselves."""
        self.reshards: dict[Any, bool] = {}
        """Whether a sharded module is freed between its forward and its backward pass."""

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

    def keeps_wide_weights(self) -> bool:
        """Whether weights are gathered in fp32, and autocast alone narrows them.

        A phase in fp32 needs them so. So does a CPU, whose norms refuse narrow weights beside wide activations (a GPU's
        autocast widens both).
        """
        return self.device.type == "cpu" or any(phase.fp32 for phase in self.objective.phases())

    def shard(self, module: nn.Module, reshard_after_forward: bool) -> FSDPModule:
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.fsdp.cpu_offload else None
        narrow = None if self.keeps_wide_weights() else self.autocast
        policy = MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
        )
        self.reshards[module] = reshard_after_forward
        return fully_shard(
            module,
            mesh=self.mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=policy,
            offload_policy=offload or OffloadPolicy(),
        )

    def move_role(self, role: nn.Module) -> None:
        """Nothing: each block comes to the device when it is sharded, so that a rank never holds the whole there."""

    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        self.apart[optimizer] = find_apart(trainee, self.fsdp.shard_apart_from)
        for role in trainee.roles.values():
            for block in find_blocks(role):
                self.shard(block, self.fsdp.reshard_after_forward)
        for module in self.apart[optimizer]:
            # A head's backward pass follows at once, and an embedding may be the head too.
            self.shard(module, reshard_after_forward=False)
        self.shard(trainee, reshard_after_forward=False)
        register_fsdp_forward_method(trainee, "begin")
        return trainee

    def wrap_untrained(self, role: nn.Module) -> None:
        # Sharded as the trained role it follows is: an average is taken shard by shard.
        for block in find_blocks(role):
            self.shard(block, reshard_after_forward=True)
        self.shard(role, reshard_after_forward=True)

    def fill_shards(self, initial: InitialWeights) -> None:
        device = torch.device("cpu") if self.fsdp.cpu_offload else self.device
        for module in (*self.roots.values(), *self.objective.roles.values()):
            give_memory(module, device)
        initial.fill(self.objective)

    def finish_wrapping(self) -> None:
        with torch.no_grad():
            for root in self.roots.values():
                root.begin()  # whichever module of a tree is called first is its root for good: this one
                root.reshard()

    @contextmanager
    def accumulating(self, phase: Phase, last: bool) -> Iterator[None]:
        own = self.roots[phase.optimizer]
        own.set_requires_gradient_sync(last or not self.fsdp.accumulate_unsharded)
        own.set_requires_all_reduce(last)  # between replicas, once a step
        others = {name: root for name, root in self.roots.items() if root is not own}
        for module in self.apart[phase.optimizer]:
            if isinstance(module, nn.Embedding):
                cast(
                    Any, module
                ).unshard()  # its weight may be read before it is called, by a head that shares it
        with self.gathered(others), self.kept(phase):
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
            module.set_reshard_after_forward(self.reshards[module], recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()

    @property
    def roots(self) -> dict[str, Any]:
        return self.wrapped

    @contextmanager
    def gathered(self, roots: dict[str, Any]) -> Iterator[None]:
        """Within it, the own parameters of these optimizers' roots are whole, and what is sharded apart from them.

        Blocks gather themselves when called. Nothing stays gathered afterwards: no backward pass would free it before
        the next update makes it stale.
        """
        with ExitStack() as stack:
            for optimizer, root in roots.items():
                for module in (root, *self.apart[optimizer]):
                    module.unshard()
                for module in sharded_modules(root):
                    stack.callback(module.reshard)
            yield

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        with self.gathered(self.roots):
            yield


def find_apart(trainee: Trainee, least: int) -> list[Any]:
    """What is worth gathering by itself: embeddings outside blocks and roles without blocks, of `least` parameters.

    What shares a parameter with another module stays with it, in the root.
    """
    candidates: list[nn.Module] = []
    for role in trainee.roles.values():
        blocks = find_blocks(role)
        inner = {module for block in blocks for module in block.modules()}
        outer = [m for m in role.modules() if isinstance(m, nn.Embedding) and m not in inner]
        candidates += outer if blocks else [role]
    holders: dict[nn.Parameter, set[nn.Module]] = {}
    for module in trainee.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(parameter, set()).add(module)
    return [
        module
        for module in candidates
        if sum(p.numel() for p in module.parameters()) >= max(least, 1)
        and all(holders[p] <= set(module.modules()) for p in module.parameters())
    ]


def sharded_modules(root: nn.Module) -> list[FSDPModule]:
    """The root, its blocks, and what is sharded apart."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]
