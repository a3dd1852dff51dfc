"""DeepSpeed's own JSON, made from our configuration and a user's file; what contradicts is refused, not overruled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig
from pretrain.engine.config import DeepSpeedConfig

OURS = ("optimizer", "scheduler")
"""Sections of a ds_config.json for which this project has its own, with `auto` values nowhere to be found in them."""


def build_ds_config(train: TrainConfig, settings: DeepSpeedConfig, world_size: int) -> dict[str, Any]:
    """The configuration to hand to `deepspeed.initialize`.

    Raises:
        UserError: the file cannot be read, or says something else than our configuration.
    """
    user = read(settings.config) if settings.config else {}
    stage = (
        settings.stage if settings.stage is not None else user.get("zero_optimization", {}).get("stage", 2)
    )
    check_combination(train, settings, stage)
    for section in OURS:
        if section in user:
            raise UserError(
                f"{settings.config}: has the section {section!r}, which this project builds from `{section}` or "
                "`schedule` of the recipe; remove it from the file"
            )
    return merge(user, wanted(train, settings, stage, world_size), settings.config or "", "")


def wanted(train: TrainConfig, settings: DeepSpeedConfig, stage: int, world_size: int) -> dict[str, Any]:
    """What our configuration means in DeepSpeed's words."""
    share = train.global_batch_size // world_size
    micro = train.micro_batch_size or share
    values: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": train.clip_grad_norm or 0.0,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        # Gradients are summed over ranks in fp32, as the other engines do.
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
    }
    for name in ("optimizer", "param"):
        device = getattr(settings, f"offload_{name}")
        if device != "none":
            section = {"device": device} | ({"nvme_path": settings.nvme_path} if device == "nvme" else {})
            values["zero_optimization"][f"offload_{name}"] = section
    return values


def merge(user: dict[str, Any], ours: dict[str, Any], file: str, prefix: str) -> dict[str, Any]:
    """`user` with `ours` filled in where it says nothing or `auto`."""
    merged = dict(user)
    for key, value in ours.items():
        place = f"{prefix}{key}"
        theirs = user.get(key, "auto")
        if isinstance(value, dict):
            merged[key] = merge({} if theirs == "auto" else theirs, value, file, f"{place}.")
        elif theirs in ("auto", value):
            merged[key] = value
        else:
            raise UserError(
                f"{file}: {place}={theirs!r} contradicts the recipe, which means {value!r}; "
                'change one of them, or write "auto" there'
            )
    return merged


def read(path: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed.config={path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"deepspeed.config={path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"deepspeed.config={path}: a ds_config.json is an object of sections")
    return values


def check_combination(train: TrainConfig, settings: DeepSpeedConfig, stage: int) -> None:
    """Raise a `UserError` for what DeepSpeed cannot do."""
    if train.precision == "fp8":
        raise UserError("train.precision=fp8: not with engine=deepspeed; use engine=fsdp or ddp, or bf16")
    if train.ema_decay is not None and stage == 3:
        raise UserError(
            f"train.ema_decay={train.ema_decay}: ZeRO-3 has no whole weights to average; use deepspeed.stage ≤ 2, or "
            "engine=fsdp"
        )
    if settings.offload_param != "none" and stage != 3:
        raise UserError(
            f"deepspeed.offload_param={settings.offload_param}: needs deepspeed.stage=3, this is {stage}"
        )
    if settings.offload_optimizer != "none" and stage == 0:
        raise UserError(
            f"deepspeed.offload_optimizer={settings.offload_optimizer}: needs deepspeed.stage 1, 2 or 3"
        )
    if "nvme" in (settings.offload_optimizer, settings.offload_param):
        if stage != 3:
            raise UserError(f"deepspeed.offload_*=nvme: needs deepspeed.stage=3, this is {stage}")
        if not settings.nvme_path:
            raise UserError("deepspeed.offload_*=nvme: give deepspeed.nvme_path, a folder on the drive")
