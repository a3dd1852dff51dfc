"""A configuration as plain values, and as text that says where each value came from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from pretrain.config.schema import plain
from pretrain.config.sections import Config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain values that YAML and JSON can hold, and `build_config` reads back."""
    return {key: plain(value) for key, value in asdict(config).items()}


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
    for line, dotted in yaml_lines(to_dict(config)):
        source = origin.get(dotted)
        lines.append(f"{line}  # {source}" if source else line)
    return "\n".join(lines)


def yaml_lines(values: dict[str, Any], prefix: str = "", indent: str = "") -> list[tuple[str, str]]:
    """Each line of block-style YAML with the dotted key it shows."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            lines.append((f"{indent}{key}:", dotted))
            lines.extend(yaml_lines(value, f"{dotted}.", f"{indent}  "))
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
            lines.append((f"{indent}{key}: {text}", dotted))
    return lines
