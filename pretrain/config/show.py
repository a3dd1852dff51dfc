"""A configuration as plain values, and as text that says where each value came from."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import yaml

from pretrain.config.schema import plain
from pretrain.config.sections import Config
from pretrain.tracking.environment import redact, redact_text

COMMAND_LINE = "command line"
"""Where a value came from that no recipe says."""
OF_DATA = ("data", "probe")
"""Sections with the URLs of data."""


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain values that YAML and JSON can hold, and `build_config` reads back."""
    return {key: plain(value) for key, value in asdict(config).items()}


def to_public_dict(config: Any) -> dict[str, Any]:
    """`to_dict` of a configuration of any kind, without what is secret in the URLs and options of data.

    It is read back as the settings of the same run; who needs the secret gives it again.
    """
    values = {key: plain(value) for key, value in asdict(config).items()}
    return {key: redact(value) if key in OF_DATA else value for key, value in values.items()}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        flat |= flatten(value, f"{dotted}.") if isinstance(value, dict) and value else {dotted: value}
    return flat


def format_config(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration as YAML, each value that is not a default marked with where it came from."""
    lines = []
    for line, dotted in yaml_lines(to_public_dict(config)):
        source = origin.get(dotted)
        lines.append(f"{line}  # {source}" if source else line)
    return "\n".join(lines)


def describe_config(config: Config, origin: dict[str, str], recipe: str) -> str:
    """What a run is, what differs from its recipe, and what that comes to on this many ranks; `--print-config` has all.

    Called in an environment that says how many ranks there are.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    train, schedule = config.train, config.schedule
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    if schedule.warmup_steps or (train.steps and schedule.warmup_ratio):
        length += f", {schedule.warmup(train.steps or 0):,} of warm-up"
    share = train.global_batch_size // ranks
    parts = -(-share // (train.micro_batch_size or share))
    batch = f"{train.global_batch_size:,} samples a step" + (f", {share:,} a rank" if ranks > 1 else "")
    batch += f" in {parts} micro-batches" if parts > 1 else ""
    optimizer = config.optimizer
    rate = f", learning rate {optimizer.lr:g}" if optimizer.lr_per_256 is not None else ""
    return (
        f"{recipe}: {config.objective.name} with {config.encoder.name} on {', '.join(config.data.weights)} → "
        f"{config.folder}{list_overrides(config, origin)}\n"
        f"  {length}; {batch}; {config.engine} on {ranks} rank(s), {train.precision}{rate}"
    )


def list_overrides(config: Any, origin: dict[str, str]) -> str:
    """A line that names what the command line has set otherwise; nothing where there is none."""
    values = flatten(to_public_dict(config))
    chosen = [redact_text(key) for key, source in origin.items() if source == COMMAND_LINE]
    own = [f"{key}={values.get(key)}" for key in chosen]
    return f"\n  set here: {', '.join(own)}" if own else ""


def yaml_lines(values: dict[str, Any], prefix: str = "", indent: str = "") -> list[tuple[str, str]]:
    """Each line of block-style YAML with the dotted key it shows."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        dotted, key = f"{prefix}{name}", yaml_text(name)
        if isinstance(value, dict) and value:
            lines.append((f"{indent}{key}:", dotted))
            lines.extend(yaml_lines(value, f"{dotted}.", f"{indent}  "))
        else:
            lines.append((f"{indent}{key}: {yaml_text(value)}", dotted))
    return lines


def yaml_text(value: Any) -> str:
    """A value, or a key, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
