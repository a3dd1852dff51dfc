"""Engines: how roles are spread over processes and devices. Nothing but an engine knows how many machines there are."""

from __future__ import annotations

from pretrain.config import Config
from pretrain.engine.base import Engine


def start_engine(config: Config) -> Engine:
    """The engine that the configuration names, with its process group started."""
    from pretrain.engine.ddp import DDPEngine

    return DDPEngine(config.train.precision)
