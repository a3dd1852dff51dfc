"""A recipe and overrides → a validated configuration.

Precedence is command line > recipe > defaults. Parsing is PyYAML's safe loader, validation is pydantic's; nothing in
a recipe is ever executed or read from the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_tools.errors import UserError, nearest
from pretrain.config.check import check
from pretrain.config.schema import build_section
from pretrain.config.sections import Config
from pretrain.config.show import flatten

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(recipe: str) -> tuple[dict[str, Any], str]:
    """The mapping in a recipe (a name from `pretrain/recipes`, or a path to a YAML file) and what to call it."""
    return read_recipe(recipe, RECIPES)


def read_recipe(recipe: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Find a recipe by its name in `folder` or by its path, and read it with the safe loader."""
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else folder / f"{recipe}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UserError(
            f"recipe {recipe!r}: no such recipe;{nearest(recipe, known)} known: {', '.join(known)}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return values, path.name


def parse_override(text: str) -> dict[str, Any]:
    """`train.steps=10` → `{"train": {"steps": 10}}`; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"{text!r} (command line): an override is written key=value, e.g. train.steps=100")
    try:
        node: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{text!r} (command line): the value is not valid YAML; quote it") from None
    for part in reversed(key.split(".")):
        node = {part: node}
    return node


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in place of its own, section by section; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another encoder or objective has other settings: those of the one it replaces do not carry over.
        renamed = both and "name" in value and merged[key].get("name", value["name"]) != value["name"]
        merged[key] = merge(merged[key], value) if both and not renamed else value
    return merged


def load_config(recipe: str, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """Resolve a run's configuration.

    Returns:
        The validated configuration, and for every dotted key that is not a default, where its value came from.
    Raises:
        UserError: an unknown recipe or key (with the nearest right one), a wrong type, a contradiction.
    """
    values, source = load_recipe(recipe)
    if "name" not in values:
        values = {**values, "name": Path(recipe).stem}
    origin = dict.fromkeys(flatten(values), source)
    for text in overrides:
        override = parse_override(text)
        values = merge(values, override)
        origin |= dict.fromkeys(flatten(override), "command line")
    return build_config(values), origin


def build_config(values: dict[str, Any]) -> Config:
    """Validate a mapping (a recipe, or a run folder's `config.yaml`) into a `Config`."""
    from pretrain.encoders import encoder_class
    from pretrain.objectives import objective_class

    values = dict(values)
    encoder = values.get("encoder")
    if isinstance(encoder, dict) and encoder.get("from_pretrained"):
        from pretrain.weights.fit import settings_of_folder

        values["encoder"] = settings_of_folder(encoder)
    for section, find in (("objective", objective_class), ("encoder", encoder_class)):
        own = values.get(section)
        if not isinstance(own, dict) or "name" not in own:
            raise UserError(
                f"{section}: missing, or without a name; a recipe says e.g. `{section}: {{name: …}}`"
            )
        values[section] = build_section(find(own["name"]).Config, own, section)
    config = build_section(Config, values, "")
    check(config)
    return config
