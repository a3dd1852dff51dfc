"""The configuration of optimizers and schedules, and what contradicts itself in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from data_tools.errors import UserError
from pretrain.config.schema import Share, plain


@dataclass(frozen=True)
class ParameterRule:
    """What differs for the parameters that `match` matches. Each setting comes from the first such rule that has it."""

    match: str
    """Pattern, as of file names, on `<role>.<parameter>`: `decoder.*`, `*.bias`."""
    lr_ratio: NonNegativeFloat | None = None
    """Share of the learning rate; multiplies what `layer_decay` gives."""
    weight_decay: NonNegativeFloat | None = None
    """In place of the optimizer's, also for what that one does not decay."""
    use: Literal["muon", "adamw"] | None = None
    """Of muon: which of the two trains them."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Weight decay acts on matrices only (parameters of two and more dimensions that are not embeddings)."""

    name: Literal["adamw", "muon", "lamb", "lars", "schedule_free"] = "adamw"
    lr: PositiveFloat = 1e-3
    lr_per_256: PositiveFloat | None = None
    """In place of `lr`: the learning rate for a global batch of 256 samples, to which it is proportional (Goyal et al.
    2017, arXiv:1706.02677). With `train.batch_size_warmup` the batch after it counts."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.05
    weight_decay_end: NonNegativeFloat | None = None
    """What weight decay has become at the end of the run, by half a cosine; null: it stays. Rules' own in proportion.
    (DINO, arXiv:2104.14294, and I-JEPA, arXiv:2301.08243: from .04 to .4.)"""
    momentum: float | None = None
    """Of muon (default .95) and lars (default .9)."""
    trust_coefficient: PositiveFloat | None = None
    """Of lars (default .001): how far a layer's update may reach, relative to its norm."""
    layer_decay: PositiveFloat | None = None
    """Learning rate of a block relative to the block above it (MAE fine-tuning: .65 for B, .75 for L)."""
    rules: tuple[ParameterRule, ...] = ()
    """Learning rate and weight decay by parameter name: `[{match: "decoder.*", lr_ratio: 0.5}]`."""


USED_BY = {
    "betas": ("adamw", "muon", "lamb", "schedule_free"),
    "eps": ("adamw", "muon", "lamb", "schedule_free"),
    "momentum": ("muon", "lars"),
    "trust_coefficient": ("lars",),
}
"""The optimizers that read a setting, where not all do."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then the named decay down to `min_lr_ratio` of the peak.

    `wsd` (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395) stays at the peak and falls in the last
    `decay_ratio` of the run, where `step` falls at once; `inverse_sqrt` falls with the root of the step and needs no
    end (Vaswani et al. 2017).
    """

    name: Literal["cosine", "linear", "constant", "wsd", "step", "inverse_sqrt"] = "cosine"
    warmup_steps: NonNegativeInt | None = None
    warmup_ratio: Share | None = None
    """Warm-up as a share of the run, so that it shrinks with `train.steps`; give this or `warmup_steps`."""
    min_lr_ratio: Share = 0.0
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run in which `wsd` falls, by 1 - √progress (Hägele et al. 2024, arXiv:2405.18392), and that `step`
    ends with."""

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        return self.warmup_steps or round((self.warmup_ratio or 0) * total_steps)


def check_optimizer(optimizer: OptimizerConfig, schedule: ScheduleConfig, place: str = "optimizer") -> None:
    """Raise a `UserError` for settings out of range, and for those that the named optimizer would not read."""
    for setting, values in (("betas", optimizer.betas), ("momentum", (optimizer.momentum or 0,))):
        for value in values:
            if not 0 <= value < 1:
                raise UserError(f"{place}.{setting}: {value} must lie in [0, 1)")
    if optimizer.weight_decay_end is not None and not optimizer.weight_decay:
        raise UserError(
            f"{place}.weight_decay_end={optimizer.weight_decay_end}: it begins at {place}.weight_decay, which is 0; "
            "give that a value, or leave this out"
        )
    refuse_unused(optimizer, place)
    for rule in optimizer.rules:
        check_rule(rule, optimizer.name, place)
    if optimizer.name == "schedule_free":
        check_schedule_free(optimizer, schedule, place)


def refuse_unused(optimizer: OptimizerConfig, place: str) -> None:
    """Raise a `UserError` for a setting that was changed and that the named optimizer does not read."""
    for setting, users in USED_BY.items():
        value, usual = (plain(getattr(settings, setting)) for settings in (optimizer, OptimizerConfig()))
        if value != usual and optimizer.name not in users:
            default = "null" if usual is None else usual
            raise UserError(
                f"{place}.{setting}={value}: is for {', '.join(users)}, and {place}.name is {optimizer.name}; leave it "
                f"at its default, {setting}={default}"
            )


def check_rule(rule: ParameterRule, optimizer: str, place: str) -> None:
    """Raise a `UserError` for a rule that says nothing, or what cannot be meant."""
    where = f"{place}.rules: {rule.match!r}"
    if rule.lr_ratio is None and rule.weight_decay is None and rule.use is None:
        raise UserError(f"{where}: changes nothing; give it lr_ratio, weight_decay or use")
    if rule.use is not None and optimizer != "muon":
        raise UserError(
            f"{where}: use={rule.use} is for {place}.name=muon, and that is {optimizer}; leave it out"
        )


def check_schedule_free(optimizer: OptimizerConfig, schedule: ScheduleConfig, place: str) -> None:
    """Raise a `UserError` for settings that averaging cannot go with."""
    if schedule.name != "constant":
        raise UserError(
            f"schedule.name={schedule.name}: {place}.name=schedule_free averages weights instead of letting the "
            "learning rate fall; set schedule.name=constant (a warm-up is kept)"
        )
    if optimizer.betas[0] == 0:
        raise UserError(
            f"{place}.betas={plain(optimizer.betas)}: schedule_free trains between two points, the first beta of the "
            "way; it must be greater than 0, usually 0.9"
        )


def check_schedule(schedule: ScheduleConfig, steps: int | None) -> None:
    """Raise a `UserError` for a warm-up that is given twice, or a schedule that does not fit into a run of `steps`.

    Args:
        steps: None where that is not known yet, as with `train.epochs`.
    """
    if schedule.warmup_steps is not None and schedule.warmup_ratio is not None:
        raise UserError("schedule.warmup_steps and schedule.warmup_ratio: give one of them")
    if steps is None:
        return
    warmup = schedule.warmup(steps)
    if warmup > steps:
        raise UserError(
            f"schedule.warmup_steps={schedule.warmup_steps}: longer than the run, which has {steps} steps; "
            "schedule.warmup_ratio shrinks with it"
        )
    falling = schedule.decay_ratio * steps
    if schedule.name == "wsd" and warmup + falling >= steps + 1:  # more than what rounding brings about
        raise UserError(
            f"schedule: wsd warms up for {warmup} steps and falls in the last {round(falling)} (decay_ratio="
            f"{schedule.decay_ratio:g}) of a run of {steps}; they overlap: shorten one, or train for more steps"
        )
