"""What DDP and FSDP share: autocast, the phases' switches, one optimizer step on the device, state by DCP's names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from pretrain.config.sections import TrainConfig
from pretrain.engine.averages import Average, OptimizerAverage, WeightAverage, trained_parameters
from pretrain.engine.base import (
    BuildOptimizer,
    Engine,
    Scale,
    Trainee,
    World,
    detach_loss,
    do_nothing,
    total_loss,
    trainable_parameters,
    trainees,
)
from pretrain.engine.blocks import (
    check_attention,
    choose_attention,
    compile_role,
    recompute_activations,
    set_attention,
)
from pretrain.engine.config import DistributedConfig
from pretrain.engine.initial_weights import InitialWeights
from pretrain.engine.precision import (
    AUTOCAST,
    Scaler,
    check_precision,
    convert_to_fp8,
    set_deterministic,
    set_matmul_precision,
)
from pretrain.engine.shards import whole_tensor
from pretrain.guards.spikes import SpikeGuard
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.optim.build import set_rates

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class TorchEngine(Engine):
    """An engine on torch's own wrappers."""

    def __init__(
        self, train: TrainConfig, world: World | None = None, distributed: DistributedConfig | None = None
    ) -> None:
        check_precision(train.precision)
        check_attention(train.attention, train.precision)
        super().__init__(world, distributed)
        self.train = train
        self.autocast = AUTOCAST.get(train.precision)
        set_matmul_precision(train.precision)
        set_deterministic(train.deterministic)

    @abstractmethod
    def wrap(self, optimizer: str, trainee: Trainee) -> nn.Module:
        """Spread a trainee over ranks; what comes back is called in its place."""

    def wrap_untrained(self, role: nn.Module) -> None:
        """Spread a role that no optimizer trains (an averaged copy, a frozen teacher), in place."""

    def move_role(self, role: nn.Module) -> None:
        """Bring a role to where it is wrapped."""
        role.to(self.device)

    def fill_shards(self, initial: InitialWeights) -> None:
        """Give wrapped roles without memory their initial weights."""
        raise TypeError(f"{type(self).__name__} needs whole weights to begin with")

    def finish_wrapping(self) -> None:
        """What an engine has to do once wrapped roles have their weights."""

    def prepare(
        self, objective: Objective, build_optimizer: BuildOptimizer, load: Callable[[], object] = do_nothing
    ) -> None:
        self.take_objective(objective)
        initial = objective.initial_weights
        if initial is None:
            load()
        attention = choose_attention(self.train, objective)
        for role in objective.roles.values():
            self.move_role(role)
            if attention:
                set_attention(role, attention)
        self.trainees = trainees(objective)
        self.scalers = {name: Scaler(self.train.precision == "fp16", self.device) for name in self.trainees}
        self.guards = {p.name: SpikeGuard(self.train.spike_sigma, self.device) for p in objective.phases()}
        trained = {role: None for trainee in self.trainees.values() for role in trainee.roles.values()}
        for role in trained:
            if self.train.precision == "fp8":
                convert_to_fp8(role)
            recompute_activations(role, self.train.activation_checkpointing)
            compile_role(role, self.train.compile)
        self.wrapped = {name: self.wrap(name, trainee) for name, trainee in self.trainees.items()}
        for role in objective.roles.values():
            if role not in trained:
                self.wrap_untrained(role)
        if initial is not None:
            self.fill_shards(initial)
            load()
        self.finish_wrapping()
        self.trainable = trainable_parameters(objective.roles)
        self.optimizers = {
            name: build_optimizer(name, dict(t.roles.items())) for name, t in self.trainees.items()
        }
        self.average = self.build_average()

    def build_average(self) -> Average | None:
        """What the settings ask for: a moving average, or the one that schedule-free optimizers keep anyway."""
        parameters = trained_parameters(self.objective.roles)
        averaging = [optimizer for optimizer in self.optimizers.values() if hasattr(optimizer, "eval")]
        if averaging:
            return OptimizerAverage(parameters, averaging)
        decay = self.train.ema_decay
        return None if decay is None else WeightAverage(parameters, decay)

    def one_phase(self, optimizer: str) -> bool:
        """Whether a single phase uses this optimizer, so that every backward pass reaches the same parameters."""
        return sum(phase.optimizer == optimizer for phase in self.objective.phases()) == 1

    def backward(self, phase: Phase, batch: Batch, scale: Scale, last: bool) -> Loss:
        self.train_only(phase)
        with self.accumulating(phase, last):
            # A gradient penalty differentiates twice, which compiled code cannot.
            stance = torch.compiler.set_stance("force_eager") if phase.fp32 else nullcontext()
            with stance, self.autocasting(enabled=not phase.fp32):
                sums, metrics = self.wrapped[phase.optimizer](phase, batch)
            total_loss(sums, scale, self.world.size, self.scalers[phase.optimizer].scale).backward()
        return detach_loss(sums, metrics)

    @contextmanager
    @abstractmethod
    def accumulating(self, phase: Phase, last: bool) -> Any:
        """Within it, gradients stay on their rank unless this micro-batch is the `last`."""

    def step(
        self, phase: Phase, lr_factor: float, max_norm: float | None, decay_factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        optimizer, scaler = self.optimizers[phase.optimizer], self.scalers[phase.optimizer]
        gradients = gradients_of(optimizer)
        norm = whole_tensor(torch.nn.utils.get_total_norm(gradients)).to(self.device) / scaler.scale
        factor = 1.0 if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if scaler.enabled or max_norm is not None:
            torch._foreach_mul_(gradients, (factor / scaler.scale).to(gradients[0].device))
        overflowed = ~norm.isfinite()
        skipped = (overflowed | self.guards[phase.name].check(norm)).float()
        set_rates(optimizer, lr_factor, decay_factor)
        # The fused kernels leave everything as it is where found_inf is 1, without asking the host.
        optimizer.found_inf = skipped.to(gradients[0].device)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        scaler.update(overflowed.float())
        return norm, skipped

    def state_dict(self) -> dict[str, Any]:
        roles = {name: module.state_dict() for name, module in self.objective.roles.items()}
        optimizers = {
            name: get_optimizer_state_dict(self.trainees[name], optimizer, options=FLAT)
            for name, optimizer in self.optimizers.items()
        }
        scalers = {name: scaler.state_dict() for name, scaler in self.scalers.items() if scaler.enabled}
        guards = {name: guard.state_dict() for name, guard in self.guards.items()}
        state = {"roles": roles, "optimizers": optimizers, "guards": guards, **self.averages()}
        return state | ({"scalers": scalers} if scalers else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self.objective.roles.items():
            module.load_state_dict(state["roles"][name])
        for name, optimizer in self.optimizers.items():
            set_optimizer_state_dict(self.trainees[name], optimizer, state["optimizers"][name], options=FLAT)
        for name, guard in self.guards.items():
            guard.load_state_dict(state["guards"][name])
        if self.average:
            self.average.load_state_dict(state["averages"])
        for name, scaler in self.scalers.items():
            if scaler.enabled:
                scaler.load_state_dict(state["scalers"][name])


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradient of every parameter; zero where the phase does not reach one.

    Torch would pass over such a parameter, ZeRO's flat buffers cannot: the engines agree on zero.
    """
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    return gradients
