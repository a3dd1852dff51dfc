"""Engines: how roles are spread over processes and devices. Nothing but an engine knows how many machines there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config.sections import Config
    from pretrain.engine.base import Engine


def start_engine(config: Config) -> Engine:
    """The engine that the configuration names, with its process group started.

    Raises:
        UserError: this machine or this number of ranks cannot do what is asked.
    """
    if config.engine == "fsdp":
        from pretrain.engine.fsdp import FSDPEngine

        return FSDPEngine(config.train, config.fsdp, config.distributed)
    if config.engine == "deepspeed":
        from pretrain.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config.train, config.deepspeed, config.distributed)
    from pretrain.engine.ddp import DDPEngine

    return DDPEngine(config.train, ddp=config.ddp, distributed=config.distributed)
