"""`python -m pretrain average RUN --last 5`: a release of the mean of a run's newest checkpoints.

The mean of weights along one run is often better than the last of them (Izmailov et al. 2018, arXiv:1803.05407; for the
newest checkpoints Kaddour 2022, arXiv:2209.14981). Where the run keeps a moving average, it is those that are averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_tools.errors import UserError
from pretrain.checkpoint.folder import complete, find_fault, step_of
from pretrain.checkpoint.weights import read_weights, saved_shapes
from pretrain.config.load import build_config
from pretrain.config.sections import Config
from pretrain.objectives.base import Objective
from pretrain.release.release import Trained, build_run_objective, refuse_foreign, states_of, write_release
from pretrain.run.folder import load_run_config
from pretrain.weights.model_folder import no_progress_bars

log = logging.getLogger(__name__)
FEWEST = 2


def average_run(run: Path, last: int, steps: Sequence[int] = (), out: Path | None = None) -> Trained:
    """Write the mean of a run's `last` newest valid checkpoints (or of those of `steps`) as a release.

    Raises:
        UserError: fewer checkpoints than asked for, of different shapes, or broken; nothing is written then.
    """
    no_progress_bars()
    out = out or run / "average"
    refuse_foreign(out)
    trained = load_average(run, last, steps)
    write_release(trained, run, out)
    return trained


def load_average(run: Path, last: int, steps: Sequence[int] = ()) -> Trained:
    """Read the mean of a run's checkpoints, as `load_run_encoder` reads the newest."""
    config = build_config(load_run_config(run))
    checkpoints = checkpoints_of(run, sorted(set(steps))) if steps else newest_checkpoints(run, last, config)
    if len(checkpoints) < FEWEST:
        raise UserError(
            f"{run}: one checkpoint has no mean; name at least {FEWEST}, or release it as it is: python -m pretrain "
            f"release {run}"
        )
    objective = build_run_objective(config)
    average_weights(objective, checkpoints)
    averaged = tuple(map(step_of, checkpoints))
    return Trained(objective, config, averaged[-1], averaged)


def newest_checkpoints(run: Path, last: int, config: Config) -> list[Path]:
    """The `last` newest valid checkpoints, oldest first.

    Raises:
        UserError: there are fewer.
    """
    found: list[Path] = []
    for path in reversed(complete(run / "checkpoints")):
        if len(found) == last:
            break
        if fault := find_fault(path):
            log.warning("passed over a broken checkpoint: %s", fault)
        else:
            found.insert(0, path)
    if len(found) < last:
        raise UserError(
            f"{run}: has {tell(found)}, not {last} to average; --last {len(found)} takes those, and "
            f"checkpoint.keep={last} (now {config.checkpoint.keep}) or checkpoint.permanent_every keeps more of them"
        )
    return found


def checkpoints_of(run: Path, steps: list[int]) -> list[Path]:
    """The checkpoints of these steps.

    Raises:
        UserError: one is not there, or broken.
    """
    there = {step_of(path): path for path in complete(run / "checkpoints")}
    missing = [step for step in steps if step not in there]
    if missing:
        raise UserError(f"--steps {missing[0]}: {run} has {tell(list(there.values()))}")
    for step in steps:
        if fault := find_fault(there[step]):
            raise UserError(f"--steps {step}: the checkpoint is broken ({fault}); leave it out")
    return [there[step] for step in steps]


def tell(checkpoints: list[Path]) -> str:
    """How many there are, and of which steps."""
    steps = f" (of steps {', '.join(str(step_of(path)) for path in checkpoints)})" if checkpoints else ""
    return f"{len(checkpoints) or 'no'} checkpoint{'' if len(checkpoints) == 1 else 's'}{steps}"


@torch.no_grad()
def average_weights(objective: Objective, checkpoints: list[Path]) -> None:
    """Give the roles the mean of the checkpoints' weights, summed up in float64; what counts is the newest's.

    Beside that mean there is one set of weights in memory, the roles' own.

    Raises:
        UserError: a checkpoint's tensors are not those of the roles.
    """
    state = states_of(objective)
    tensors = {f"{role}.{name}": tensor for role, own in state.items() for name, tensor in own.items()}
    for path in checkpoints:
        refuse_other_shapes(path, tensors)
    mean = {name: t.double().zero_() for name, t in tensors.items() if t.is_floating_point()}
    for n, path in enumerate(checkpoints, start=1):
        read_weights(path, state)
        for name, value in mean.items():
            value.add_((tensors[name] - value) / n)
    for name, value in mean.items():
        tensors[name].copy_(value)
    for role, module in objective.roles.items():
        module.load_state_dict(state[role])


def refuse_other_shapes(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    """Raise a `UserError` where a checkpoint lacks one of the tensors, or has another shape of it."""
    saved = saved_shapes(checkpoint)
    for name, tensor in tensors.items():
        if saved.get(name) != tuple(tensor.shape):
            found = list(saved[name]) if name in saved else "not there"
            raise UserError(
                f"{checkpoint}: {name} is {found}, and {list(tensor.shape)} by the run's settings; it is of another "
                "model: leave it out with --steps"
            )
