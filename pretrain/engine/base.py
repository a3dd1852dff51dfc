"""What the trainer asks of an engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

from data_tools.errors import UserError, as_told
from pretrain.engine.averages import Average
from pretrain.engine.config import DistributedConfig
from pretrain.engine.saving import Files, count_bytes, new_key, own_share, save_state, without_advice
from pretrain.objectives.base import Batch, Loss, Metric, Objective, Phase, by_name
from pretrain.ops.batch_norm import SyncedBatchNorm2d
from pretrain.ops.world import World

__all__ = ["BuildOptimizer", "Engine", "Trainee", "World", "trainees"]

SETTINGS = (".betas", ".eps", ".weight_decay", ".momentum", ".trust_coefficient", ".lr_ratio")
"""What parameter groups of an optimizer hold besides its state."""

Scale = float | Mapping[str, float]
"""What loss sums are multiplied by: one over the count, by name where there are several."""
BuildOptimizer = Callable[[str, dict[str, nn.Module]], torch.optim.Optimizer]
"""(The optimizer's name, {role name: module}) → the optimizer over their trainable parameters."""


class Trainee(nn.Module):
    """The roles that one optimizer trains; its forward is the objective's loss.

    One of these is what an engine wraps. So a role may be called any number of times within a step, two roles may
    share a parameter, and a discriminator that merely judges in the generator's phase stays outside.
    """

    def __init__(self, objective: Objective, names: list[str]) -> None:
        super().__init__()
        self.roles = nn.ModuleDict({name: objective.roles[name] for name in names})
        self.objective = objective

    def forward(self, phase: Phase, batch: Batch) -> tuple[dict[str, Tensor], Mapping[str, Metric]]:
        """The loss sums by name and the metrics, as a tuple: DDP's static graph reduces nothing behind a dataclass."""
        loss = self.objective.loss(phase, batch)
        return by_name(loss.sum), loss.metrics

    def begin(self) -> None:
        """Nothing. An engine whose hooks stand around methods calls it once to set them up."""


def total_loss(sums: Mapping[str, Tensor], scale: Scale, ranks: int, factor: float | Tensor = 1.0) -> Tensor:
    """Σ of each sum × its scale × `ranks` × `factor`: engines average gradients over ranks, and scales are for sums.

    Raises:
        UserError: the objective's sums and counts have different names.
    """
    scales = by_name(scale)
    if scales.keys() != sums.keys():
        raise UserError(
            f"the objective's loss() names {', '.join(sums)} and its count() names {', '.join(scales)}; give every sum "
            "the count that it is divided by"
        )
    parts = [value * (factor * (scales[name] * ranks)) for name, value in sums.items()]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def detach_loss(sums: Mapping[str, Tensor], metrics: Mapping[str, Metric]) -> Loss:
    """What a backward pass leaves: the sums without their graphs."""
    detached = {name: value.detach() for name, value in sums.items()}
    return Loss(detached["loss"] if detached.keys() == {"loss"} else detached, metrics)


def trainable_parameters(roles: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """By role, what training may change; a parameter that two roles share is in both."""
    return {name: [p for p in role.parameters() if p.requires_grad] for name, role in roles.items()}


def trainees(objective: Objective) -> dict[str, Trainee]:
    """One `Trainee` for every optimizer that the objective's phases name."""
    names: dict[str, list[str]] = {}
    for phase in objective.phases():
        own = names.setdefault(phase.optimizer, [])
        own.extend(name for name in phase.trains if name not in own)
    return {optimizer: Trainee(objective, roles) for optimizer, roles in names.items()}


def do_nothing() -> None:
    """The weights are those that the seed gives."""


class Engine(ABC):
    """Wraps roles, runs them backward, steps their optimizers, and hands out their state."""

    objective: Objective
    trainees: dict[str, Trainee]
    """By optimizer."""
    trainable: dict[str, list[nn.Parameter]]
    """By role."""
    autocast: torch.dtype | None = None
    """What matrix products are computed in; None: what the weights are in."""
    average: Average | None = None
    """Of the trained weights, where one is kept."""
    needs_group = False
    """Whether one process alone still needs a process group."""

    def __init__(self, world: World | None = None, distributed: DistributedConfig | None = None) -> None:
        """Take this rank's device and join the process group.

        Args:
            world: what the launcher says by default; pass `World()` to train alone inside a larger job.
        """
        self.world = world or World.from_environment()
        self.distributed = distributed or DistributedConfig()
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", self.world.local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self.stager = StateDictStager(pin_memory=cuda, share_memory=False)
        self.plans = new_key()
        self.bytes_written = 0
        """Of checkpoints, by this rank, so far: what grows is not hanging."""
        self.saving_group: dist.ProcessGroup | None = None
        """Collectives of a checkpoint that is written beside the training's own."""
        self.started_group = False
        if (self.world.size > 1 or self.needs_group) and not dist.is_initialized():
            self.start_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        # Now, and not at the first checkpoint: a group is made through `torchrun`'s agent, and a checkpoint must still
        # be written when that has been killed.
        self.start_saving_group()

    def start_group(self, backend: str) -> None:
        """Join the process group, in which ranks wait for each other as long as the start may take."""
        limit = timedelta(seconds=self.distributed.start_timeout)
        device = self.device if self.device.type == "cuda" else None
        if self.world.size > 1:
            dist.init_process_group(backend, timeout=limit, device_id=device)
        else:
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1, timeout=limit, device_id=device
            )
        self.started_group = True

    def end_start(self) -> None:
        """Wait until the first step has ended on all ranks; from now on they wait as long as training allows."""
        if not dist.is_initialized():
            return
        self.barrier()
        limit = timedelta(seconds=self.distributed.timeout)
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(limit, group)

    def take_objective(self, objective: Objective) -> None:
        """The objective that is trained from here on; it learns which ranks there are, and so do its batch norms."""
        self.objective = objective
        objective.world = self.world
        for role in objective.roles.values():
            for module in role.modules():
                if isinstance(module, SyncedBatchNorm2d):
                    module.world = self.world

    def train_only(self, phase: Phase) -> None:
        """Let only the phase's roles collect gradients: the others merely pass them on."""
        if len(self.trainees) > 1:
            for name, parameters in self.trainable.items():
                for parameter in parameters:
                    parameter.requires_grad_(name in phase.trains)

    @abstractmethod
    def prepare(
        self, objective: Objective, build_optimizer: BuildOptimizer, load: Callable[[], object] = do_nothing
    ) -> None:
        """Move the roles to the device, wrap them and build an optimizer for each trainee.

        Args:
            load: gives the roles weights from files. Called once, on all ranks, when the roles have their initial
                weights, and before anything is made from them: whole, or where those are deferred, in shards.
        """

    @abstractmethod
    def backward(self, phase: Phase, batch: Batch, scale: Scale, last: bool) -> Loss:
        """Add the gradient of `scale` × the batch's loss sum; on the `last` micro-batch it is summed over ranks."""

    @abstractmethod
    def step(
        self, phase: Phase, lr_factor: float, max_norm: float | None, decay_factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Clip, step unless the gradient is not finite (or, where that is set, a spike), and clear the gradients.

        Args:
            lr_factor: of the learning rates that are configured; `decay_factor`: of weight decays.
            max_norm: to clip to; None: not at all.
        Returns:
            The gradient's norm before clipping, and 1 where the update was skipped (scalars on the device).
        """

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Within it, roles can be called outside `backward`. Entered on all ranks together."""
        yield

    def put_average(self) -> None:
        """Give the roles their averaged weights for good, where an average is kept: training is over."""
        if self.average:
            self.average.put()
            self.average = None

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within it, the roles have their averaged weights, where an average is kept: those that are looked at."""
        with self.average.in_place() if self.average else nullcontext():
            yield

    def autocasting(self, enabled: bool = True) -> torch.autocast:
        """Within it, matrix products are computed in the precision of training."""
        enabled = enabled and self.autocast is not None
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=enabled)

    @contextmanager
    def evaluating(self, objective: Objective, averaged: bool = True) -> Iterator[None]:
        """Within it, `objective` can be asked about whole samples. Entered on all ranks together.

        Its roles have their averaged weights where an average is kept (unless `averaged` is False), can be called
        though they are sharded, compute in the precision of training, without dropout and gradients. Afterwards
        weights, modes and random states are as they were. An objective that this engine has not prepared is taken as
        it is.
        """
        prepared = getattr(self, "objective", None) is objective
        cuda = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as stack:
            if prepared and averaged:
                stack.enter_context(self.ema_weights())
            if prepared:
                stack.enter_context(self.unsharded())
            stack.enter_context(self.autocasting())
            stack.enter_context(in_eval_mode(objective.roles.values()))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(devices=cuda))
            yield

    def averages(self) -> dict[str, Any]:
        """The averaged weights by role and name, as a checkpoint keeps them; nothing where no average is kept."""
        return {"averages": self.average.state_dict()} if self.average else {}

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Let averages follow, and the objective look after itself with its parameters in reach.

        `skipped` is what the phase's `step` returned.
        """
        if self.average:
            self.average.update(phase.trains, step, skipped)
        self.objective.after_step(phase, step, skipped)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank. What lies on the host stays there, so that no device is waited for."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def holds_anywhere(self, condition: bool) -> bool:
        """Whether it holds on some rank, the same on all of them. On all ranks together."""
        return bool(self.sum(torch.tensor(float(condition))))

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (any small picklable object), on every rank."""
        if self.world.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (any small picklable object), by rank, on every rank."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def on_main_process(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, on every rank; a user's mistake that it meets there is raised on all."""
        result, mistake = None, None
        if self.world.rank == 0:
            try:
                result = work()
            except UserError as error:
                mistake = str(error)
        result, mistake = self.broadcast((result, mistake))
        if mistake is not None:
            raise as_told(UserError(mistake)) if self.world.rank else UserError(mistake)
        return result

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world.size > 1:
            dist.barrier()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors of all roles and optimizers under names that do not depend on the engine or the world size."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is, over all ranks. Called on all ranks together."""
        return count_bytes(self.state_dict())

    def start_saving(self, folder: Path) -> Callable[[], Files]:
        """Copy what this rank writes of roles and optimizers to the host; return what writes it into an empty folder.

        Both are called on all ranks together, the second in any thread, while training goes on; the copy's buffers are
        used again, so it must have ended before the next one is taken. It returns the files of this rank.

        This is `torch.distributed.checkpoint` (DCP), which every world size loads again; an engine that has a format of
        its own overrides this and `load`, and still writes the roles with DCP, so that a release reads every checkpoint
        alike.
        """
        self.start_saving_group()
        state = self.state_dict()
        needed = count_bytes(state)
        staged = self.stager.stage(own_share(state, self.world.rank, self.world.size))
        return lambda: self.write_state(staged, folder, needed)

    def write_state(self, state: dict[str, Any], folder: Path, needed: int) -> Files:
        """Write this rank's share of a state in `folder`, all ranks together; `needed` bytes are all of it."""
        alone = self.world.size == 1
        return save_state(state, folder, alone, self.saving_group, self.plans, needed, self.count_written)

    def start_saving_group(self) -> None:
        """Make the group that checkpoints are written in, where there is none. Called on all ranks together."""
        if self.world.size > 1 and self.saving_group is None:
            limit = timedelta(seconds=self.distributed.start_timeout)
            self.saving_group = dist.new_group(backend="gloo", timeout=limit)

    def gather_while_saving(self, value: Any) -> list[Any]:
        """As `gather`, in the thread that writes a checkpoint."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self.saving_group)
        return values

    def forget_failed_saving(self) -> None:
        """Begin the next checkpoint anew: ranks may have left the last one at different places. On all ranks."""
        self.saving_group, self.plans = None, new_key()

    def count_written(self, written: int) -> None:
        self.bytes_written += written

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote. Called on all ranks together.

        Settings that a checkpoint keeps beside the states of optimizers (weight decay, betas) stay those of this run.
        """
        state = self.state_dict()
        settings = optimizer_settings(state)
        with without_advice():
            dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=self.world.size == 1)
        for optimizer, values in settings.items():
            state["optimizers"][optimizer].update(values)
        self.load_state_dict(state)

    def close(self) -> None:
        """Leave the process group, at the same moment as the other ranks; see `closing_engine`."""
        if self.started_group:
            # A gloo thread needs the GIL to let go of the tensors of its last work, and the group's destructor waits
            # for that thread while it holds the GIL (pytorch#56297): 8 of 25 short jobs hung here, none after a pause.
            time.sleep(0.2)
            dist.destroy_process_group()


@contextmanager
def in_eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, dropout is off; afterwards each module has the mode it had."""
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.train(mode)


def optimizer_settings(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By optimizer, the entries of its flat state that are settings of parameter groups."""
    return {
        optimizer: {k: v for k, v in flat.items() if k.startswith("param_groups.") and k.endswith(SETTINGS)}
        for optimizer, flat in state.get("optimizers", {}).items()
    }
