"""The engines' own sections of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class DistributedConfig:
    """How long ranks wait for each other in a collective, in seconds. Then the job fails."""

    start_timeout: PositiveFloat = 1800.0
    """Until the first step has ended: ranks may be downloading, packing or compiling meanwhile."""
    timeout: PositiveFloat = 600.0
    """From then on."""


@dataclass(frozen=True)
class DDPConfig:
    """`engine=ddp`: every rank holds everything."""

    static_graph: bool | None = None
    """Tell DDP that every step uses the same parameters in the same order. Default: wherever that is sure, which is one
    phase an optimizer and no accumulation."""
    find_unused_parameters: bool = False
    """Look in every step for parameters that the loss does not use, and do not wait for their gradients. For objectives
    that use some only now and then; it costs a walk through the graph."""


@dataclass(frozen=True)
class FSDPConfig:
    """`engine=fsdp`: parameters, gradients and optimizer states are sharded over ranks (FSDP2)."""

    hsdp: PositiveInt = 1
    """Replicas of the sharded model: ranks form a mesh of `hsdp` × (ranks / hsdp); 1 shards over all of them."""
    reshard_after_forward: bool = True
    """Free a block's whole parameters between its forward and its backward pass: less memory, more traffic."""
    cpu_offload: bool = False
    """Keep parameters, gradients and optimizer states in host memory."""
    accumulate_unsharded: bool = False
    """Reduce gradients once a step instead of in every micro-batch: less traffic, but each rank keeps whole gradients
    meanwhile, in fp32."""
    shard_apart_from: NonNegativeInt = 1_000_000
    """Parameters from which an embedding or a head is gathered and reduced by itself; smaller ones go together."""


@dataclass(frozen=True)
class DeepSpeedConfig:
    """`engine=deepspeed`: ZeRO."""

    stage: Literal[0, 1, 2, 3] | None = None
    """0 replicates, 1 shards optimizer states, 2 also gradients, 3 also parameters. Default: as in `config`, or 2."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_param: Literal["none", "cpu", "nvme"] = "none"
    """Stage 3 only."""
    nvme_path: str | None = None
    config: str | None = None
    """A ds_config.json of your own. It must not contradict this configuration; `auto` values are filled in."""
