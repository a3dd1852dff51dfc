"""`optimizer.lr_per_256`: the learning rate by the linear batch-size rule, in place of `optimizer.lr`.

Steps over a batch k times as large are k times as long (Goyal et al. 2017, arXiv:1706.02677), and papers state the rate
for 256 samples. What the rule comes to is `optimizer.lr`: that is what a run is known by and all else reads; the rule
is one way to write it. In settings that have been resolved both stand, and agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig

RATE, RULE = "lr", "lr_per_256"
OTHER = {RATE: RULE, RULE: RATE}
ORIGIN = "lr_per_256 × train.global_batch_size / 256"
"""Where a learning rate by the rule comes from, as `--print-config` says it."""


def rate_of(lr_per_256: float, global_batch_size: int) -> float:
    return lr_per_256 * global_batch_size / 256


def resolve_rates(config: Any) -> Any:
    """A run's or a fine-tuning job's configuration with the learning rates that its rules come to."""
    batch, optimizer = config.train.global_batch_size, config.optimizer
    if optimizer.lr_per_256 is not None:
        config = replace(config, optimizer=replace(optimizer, lr=rate_of(optimizer.lr_per_256, batch)))
    overrides = getattr(config, "optimizer_overrides", None)
    if overrides:
        resolved = {
            name: {**own, RATE: rate_of(config.optimizer_for(name).lr_per_256, batch)}
            if own.get(RULE) is not None
            else own
            for name, own in overrides.items()
        }
        config = replace(config, optimizer_overrides=resolved)
    return config


def origins_of_rates(values: dict[str, Any]) -> dict[str, str]:
    """By the dotted key of each learning rate that a rule gives (`values`: dotted keys), where it comes from."""
    rules = [key for key, value in values.items() if is_rule(key) and value is not None]
    return {key.removesuffix(RULE) + RATE: ORIGIN for key in rules}


def is_rule(key: str) -> bool:
    """Whether a dotted key is a rule whose rate stands beside it in resolved settings."""
    return key.startswith(("optimizer.", "optimizer_overrides.")) and key.endswith(f".{RULE}")


def forget_other_rate(values: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    """`values` without the rule where `path` gives a rate, and without the rate where it gives a rule."""
    if path[-1] not in OTHER or value is None:
        return values
    return without(values, [*path[:-1], OTHER[path[-1]]])


def without(values: dict[str, Any], path: list[Any]) -> dict[str, Any]:
    """`values` without what stands at `path`."""
    (key, *rest) = path
    return {
        name: without(inner, rest) if rest and str(name) == str(key) and isinstance(inner, dict) else inner
        for name, inner in values.items()
        if rest or str(name) != str(key)
    }


def forget_rules(values: dict[str, Any]) -> dict[str, Any]:
    """Resolved settings with the rates that their rules came to, and without the rules."""
    return {
        key: forget_rules(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not (key == RULE and values.get(RATE) is not None)
    }


def refuse_two_rates(values: Any, source: str, resolved: bool = False) -> None:
    """Raise a `UserError` where one source of settings gives a rate and a rule for the same optimizer.

    Args:
        resolved: whether they may be those of a run's `config.yaml`, in which both stand and agree.
    """
    train = values.get("train") if isinstance(values, dict) else None
    batch = (train if isinstance(train, dict) else {}).get("global_batch_size", TrainConfig.global_batch_size)
    for place, own in sections_with(values, RULE):
        rate, rule = own.get(RATE), own[RULE]
        if rate is None or rule is None or (resolved and agree(rate, rule, batch)):
            continue
        raise UserError(
            f"{place}.{RATE}={rate} and {place}.{RULE}={rule} ({source}): are two ways to give the learning rate; "
            "leave one of them out"
        )


def sections_with(values: Any, key: str, place: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Each mapping at any depth that has `key`, with its dotted place."""
    if not isinstance(values, dict):
        return []
    found = [(place, values)] if key in values else []
    for name, inner in values.items():
        found += sections_with(inner, key, f"{place}.{name}".strip("."))
    return found


def agree(rate: Any, rule: Any, batch: Any) -> bool:
    try:
        return float(rate) == rate_of(float(rule), int(batch))
    except (TypeError, ValueError):
        return True  # no numbers: that is told when types are checked
