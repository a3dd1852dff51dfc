"""Hooks of the user's own, named in a recipe: `hooks: [my_file:MyHook, {name: my_file:Other, every: 500}]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from data_tools.errors import UserError, mistakes_of_one_rank
from pretrain.config.registry import find_class
from pretrain.config.sections import Config
from pretrain.engine.base import Engine
from pretrain.objectives.base import Objective
from pretrain.tracking.tracks import Tracks
from pretrain.trainer import Hook


@dataclass(frozen=True)
class HookContext:
    """What a hook may look at."""

    config: Config
    objective: Objective
    engine: Engine
    tracker: Tracks | None
    """On rank 0 only."""


class OwnHook(Protocol):
    """A class `MyHook(context, **settings)`, built on every rank once a run has begun or been resumed.

    With `state_dict` and `load_state_dict`, what rank 0 has there (JSON-able) is kept in checkpoints.
    """

    every: int
    """Steps between its runs; it also runs before the first step and after the last."""

    def run(self, step: int) -> None:
        """Called on all ranks together, after `step` steps. `context.engine.evaluating(context.objective)` around calls
        of the objective; a rank that fails ends the run."""


def build_own_hooks(
    config: Config, objective: Objective, engine: Engine, tracker: Tracks | None
) -> list[Hook]:
    """The hooks that the recipe names.

    Raises:
        UserError: one cannot be imported, does not take its settings, or says not what it runs, or how often.
    """
    context = HookContext(config, objective, engine, tracker)
    return [build_own_hook(entry, context) for entry in config.hooks]


def build_own_hook(entry: str | dict[str, Any], context: HookContext) -> Hook:
    settings = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"hooks: {entry!r} has no name; write module:Class, or {{name: module:Class, …}}")
    try:
        hook: OwnHook = find_class(name, {}, "hooks")(context, **settings)
    except TypeError as error:
        raise UserError(f"hooks: {name} cannot be built ({error}); see its settings") from None
    every = getattr(hook, "every", None)
    if not isinstance(every, int) or every < 1:
        raise UserError(f"hooks: {name} runs every {every!r} steps; give it an `every` of at least 1")
    if not callable(getattr(hook, "run", None)):
        raise UserError(f"hooks: {name} has nothing to run; give it a method run(self, step)")
    run = mistakes_of_one_rank()(hook.run)
    return Hook(every, run, name, hook if hasattr(hook, "state_dict") else None)
