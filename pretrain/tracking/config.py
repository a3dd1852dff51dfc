"""How a run is followed: how often it tells of itself, and where it tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases. The API key is never a setting: W&B reads `WANDB_API_KEY` or what `wandb login` stored."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where a key is configured, else offline: `wandb sync RUN/wandb/offline-run-*` then uploads all
    starts of a run into one."""
    project: str = "masquerade"
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrackingConfig:
    """What is told of a run besides its `metrics.jsonl`, which is always written."""

    wandb: WandbConfig = WandbConfig()
    log_every: Annotated[int, Field(gt=0)] = 10
    """Steps between logged lines."""
    picture_every: Annotated[int, Field(ge=0)] = 500
    """Steps between pictures; 0 for none."""
    report: bool = True
    """Write RUN/report.html at the end; `python -m pretrain report RUN` does so at any time."""
    count_flops: bool = True
    """Count a step's FLOPs at the start, for `tflops_per_second` and `mfu`."""
    communication_every: Annotated[int, Field(ge=0)] = 0
    """Steps between measurements of the share in which ranks talk to each other, by torch's profiler; 0: never."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """What one device can do at most, for `mfu`; default: by its name, where that is known."""
    profile_at: Annotated[int, Field(ge=0)] = 0
    """First step that torch's profiler records into RUN/profile; 0: none."""
    profile_steps: Annotated[int, Field(gt=0)] = 3
    memory_snapshot: bool = False
    """Record the GPU's allocations in the same steps, for pytorch.org/memory_viz."""
    progress: bool = True
    """A progress bar on a terminal, plain lines elsewhere."""
