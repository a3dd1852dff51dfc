"""The parts of a training run put together: the same for a run, a dry run, a replayed step, fine-tuning and tests."""

from __future__ import annotations

from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import Config
from pretrain.data import Sources, build_loader
from pretrain.engine.base import Engine
from pretrain.metering.meter import Meter
from pretrain.objectives.base import Objective
from pretrain.optim.build import build_optimizer
from pretrain.trainer import Tracks, Trainer


def prepare_engine(config: Config, objective: Objective, engine: Engine) -> None:
    """Let the engine spread the objective's roles, each trained by the optimizer that the configuration names."""
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))


def assemble_trainer(
    config: Config,
    objective: Objective,
    sources: Sources,
    engine: Engine,
    total_steps: int,
    tracker: Tracks | None = None,
    checkpoints: Checkpoints | None = None,
    meter: Meter | None = None,
) -> Trainer:
    """A trainer at step 0 over this rank's share of the data. Called on all ranks together.

    Args:
        objective: as built, with the weights that it is to start from; the engine spreads its roles.
    """
    loader = build_loader(config, objective, sources, engine.world)
    prepare_engine(config, objective, engine)
    return Trainer(
        config, objective, loader, engine, total_steps, tracker=tracker, checkpoints=checkpoints, meter=meter
    )
