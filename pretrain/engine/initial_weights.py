"""Objectives with the weights that a seed gives, at once or once they are sharded: the same to the last bit."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from pretrain.engine.deferred import NotDeferrableError, Recorder, Recording, View
from pretrain.engine.shards import copy_shard, local
from pretrain.objectives.base import Objective

log = logging.getLogger(__name__)
Build = Callable[[], Objective]


@dataclass(frozen=True)
class InitialWeights:
    """The initial weights of roles that have shapes only."""

    seed: int
    recording: Recording
    places: Mapping[int, list[tuple[str, str, View]]]
    """By storage, the (role, parameter or buffer, view) that show it."""
    restored: bool = False
    """A checkpoint will be loaded, so that only what it does not hold is drawn; the rest is NaN until then."""

    def fill(self, objective: Objective) -> None:
        """Draw them all and keep this rank's shards, for which there is memory now. Needs no other rank."""
        give_memory(objective.encoder, torch.device("cpu"))  # one that is no role
        tensors = {role: named_tensors(module) for role, module in modules_of(objective).items()}
        wanted = self.not_restored(objective)

        def finish(storage: int, memory: torch.UntypedStorage) -> None:
            for role, name, view in self.places[storage]:
                copy_shard(tensors[role][name], view.on(memory))

        for storage in self.places.keys() - wanted:
            for role, name, _ in self.places[storage]:
                local([tensors[role][name].detach()])[0].fill_(math.nan)
        torch.manual_seed(self.seed)
        self.recording.play(wanted, finish)

    def not_restored(self, objective: Objective) -> set[int]:
        """The storages that no checkpoint will fill."""
        if not self.restored:
            return set(self.places)
        saved = {(role, name) for role, module in objective.roles.items() for name in module.state_dict()}
        return {
            storage
            for storage, places in self.places.items()
            if not all((role, name) in saved for role, name, _ in places)
        }


def expect_checkpoint(objective: Objective) -> None:
    """Let the engine draw no weights that are loaded from a checkpoint right after."""
    if objective.initial_weights is not None:
        objective.initial_weights = replace(objective.initial_weights, restored=True)


def build_whole(build: Build, seed: int) -> Objective:
    """What `build` makes, in memory, from this seed."""
    torch.manual_seed(seed)
    return build()


def build_deferred(build: Build, seed: int) -> Objective:
    """What `build` makes from this seed, its weights without memory until an engine fills its shards.

    An objective whose constructors cannot be written down is built whole, and a warning says why.
    """
    torch.manual_seed(seed)
    try:
        with Recorder() as recorder:
            objective = build()
        objective.initial_weights = InitialWeights(seed, recorder.recording, find_places(objective, recorder))
        return objective
    except Exception as error:  # whatever constructors of somebody's do: a fault of theirs shows again below
        reason = str(error).split("\n")[0]
        objective = build_whole(build, seed)
    log.warning("every rank builds the whole model in its memory before it is sharded: %s", reason)
    return objective


def find_places(objective: Objective, recorder: Recorder) -> dict[int, list[tuple[str, str, View]]]:
    """Where each storage of a recording is shown.

    Raises:
        NotDeferrableError: a tensor without memory is kept elsewhere than in a role.
    """
    places: dict[int, list[tuple[str, str, View]]] = {}
    for role, module in modules_of(objective).items():
        for name, tensor in named_tensors(module).items():
            if tensor.is_meta:
                view = View.of(tensor)
                places.setdefault(view.storage, []).append((role, name, view))
    if recorder.living() - places.keys():
        gc.collect()  # a cycle may have kept it
    if recorder.living() - places.keys():
        raise NotDeferrableError("it keeps a weight that is no parameter or buffer of a role")
    return places


@torch.no_grad()
def give_memory(module: nn.Module, device: torch.device) -> None:
    """Give those parameters and buffers memory on the device that have none; of sharded ones, for this rank's shards.

    Not with `to_empty`, which makes two parameters of one that two modules share.
    """
    made: dict[Tensor, Tensor] = {}
    for inner in module.modules():
        for tensors in (inner._parameters, inner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    if tensor not in made:
                        made[tensor] = torch.empty_like(tensor, device=device)
                        if isinstance(tensor, nn.Parameter):
                            made[tensor] = nn.Parameter(made[tensor], requires_grad=tensor.requires_grad)
                    tensors[name] = made[tensor]  # type: ignore[assignment]


def modules_of(objective: Objective) -> dict[str, nn.Module]:
    """The roles, and an encoder that is none."""
    return {"encoder": objective.encoder, **objective.roles}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict(chain(parameters, module.named_buffers(remove_duplicate=False)))
