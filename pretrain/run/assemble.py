"""The parts of a training run put together: the same for a run, a dry run, a replayed step, fine-tuning and tests."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import Config
from pretrain.data import Sources, build_loader
from pretrain.engine.base import Engine, do_nothing
from pretrain.metering.meter import Meter
from pretrain.objectives.base import Objective
from pretrain.optim.build import build_optimizer
from pretrain.tracking.tracks import Tracks
from pretrain.trainer import Trainer


def prepare_engine(
    config: Config, objective: Objective, engine: Engine, load: Callable[[], object] = do_nothing
) -> None:
    """Let the engine spread the objective's roles, each trained by the optimizer that the configuration names.

    Args:
        load: gives the roles weights from files, as `Engine.prepare` has it.
    """
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)), load)


def assemble_trainer(
    config: Config,
    objective: Objective,
    sources: Sources,
    engine: Engine,
    total_steps: int,
    tracker: Tracks | None = None,
    checkpoints: Checkpoints | None = None,
    meter: Meter | None = None,
    load: Callable[[], object] = do_nothing,
) -> Trainer:
    """A trainer at step 0 over this rank's share of the data. Called on all ranks together.

    Args:
        objective: as built; the engine spreads its roles.
        load: gives the roles weights from files, as `Engine.prepare` has it.
    """
    loader = build_loader(config, objective, sources, engine.world, engine.world.find_node_size())
    prepare_engine(config, objective, engine, load)
    return Trainer(
        config, objective, loader, engine, total_steps, tracker=tracker, checkpoints=checkpoints, meter=meter
    )
