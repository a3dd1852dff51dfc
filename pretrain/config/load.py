"""A recipe and overrides → a validated configuration.

Precedence is command line > recipe > defaults. Parsing is PyYAML's safe loader, validation is pydantic's; nothing in
a recipe is ever executed or read from the environment.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from data_tools.errors import UserError, nearest
from data_tools.schema import build_section, parse_override, put, read_yaml
from pretrain.config.check import check
from pretrain.config.rate_rule import forget_other_rate, origins_of_rates, refuse_two_rates, resolve_rates
from pretrain.config.sections import Config
from pretrain.config.show import COMMAND_LINE, flatten

RECIPES = Path(__file__).parent.parent / "recipes"
CHOSEN_BY_NAME = ("encoder", "objective", "task")
"""Sections whose `name` says which settings they have."""


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
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return values, path.name


def override(values: dict[str, Any], path: list[Any], value: Any, schema: Any = Config) -> dict[str, Any]:
    """`values` with another value at `path`; they are not changed themselves.

    A mapping for a section (`train={steps: 10}`) sets the keys that it names; a mapping for a value
    (`data.path={a: 1}`) takes its place. Another `encoder.name`, `objective.name` or `task.name` begins that section
    anew, for the settings of the one before are not its own. Of `lr` and `lr_per_256` the one takes the other's place.
    """
    section = section_at(schema, path)
    if section is not None and isinstance(value, dict):
        for key in sorted(value, key=lambda key: key != "name"):  # the name first, which may begin it anew
            values = override(values, [*path, key], value[key], schema)
        return values
    if len(path) == 2 and path[0] in CHOSEN_BY_NAME and path[1] == "name":
        before = values.get(path[0])
        if isinstance(before, dict) and before.get("name", value) != value:
            values = {**values, path[0]: {}}
    return put(forget_other_rate(values, path, value), path, value)


def section_at(schema: Any, path: list[Any]) -> Any:
    """The dataclass of the section at `path`, `Any` where the section's name chooses it, None where a value stands."""
    for key in path:
        known = {field.name: field for field in fields(schema)} if is_dataclass(schema) else {}
        if key not in known:
            return None
        default = known[key].default
        schema = type(default) if is_dataclass(default) else Any if key in CHOSEN_BY_NAME else None
    return schema


def merge(base: dict[str, Any], over: dict[str, Any], schema: Any = Config) -> dict[str, Any]:
    """`base` with the values of `over` in place of its own, section by section, as `override` does."""
    for key, value in over.items():
        base = override(base, [key], value, schema)
    return base


def load_config(recipe: str, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """Resolve a run's configuration.

    Returns:
        The validated configuration, and for every dotted key that is not a default, where its value came from.
    Raises:
        UserError: an unknown recipe or key (with the nearest right one), a wrong type, a contradiction.
    """
    values, origin = resolve(recipe, RECIPES, overrides, Config)
    return build_config(values), origin


def resolve(
    recipe: str, folder: Path, overrides: list[str], schema: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe's values (from `folder`, or a file) with overrides, and where each dotted key got its value."""
    values, source = read_recipe(recipe, folder)
    values = {"name": Path(recipe).stem, **values}
    refuse_two_rates(values, source, resolved=True)
    origin = dict.fromkeys(flatten(values), source)
    given: dict[str, Any] = {}
    for text in overrides:
        path, value = parse_override(text)
        given = put(given, path, value)
        before, values = flatten(values), override(values, path, value, schema)
        now = flatten(values)
        changed = [key for key in now if key == ".".join(path) or now[key] != before.get(key)]
        origin = {key: origin[key] for key in now if key in origin} | dict.fromkeys(changed, COMMAND_LINE)
    refuse_two_rates(given, COMMAND_LINE)
    return values, origin | origins_of_rates(flatten(values))


def build_config(values: dict[str, Any]) -> Config:
    """Validate a mapping (a recipe, or a run folder's `config.yaml`) into a `Config`."""
    from pretrain.encoders import encoder_class
    from pretrain.objectives import objective_class

    values = dict(values)
    encoder = values.get("encoder")
    if isinstance(encoder, dict) and encoder.get("from_pretrained"):
        from pretrain.weights.model_folder import resolve_encoder

        values["encoder"] = resolve_encoder(encoder)
    for section, find in (("objective", objective_class), ("encoder", encoder_class)):
        own = values.get(section)
        if not isinstance(own, dict) or "name" not in own:
            raise UserError(
                f"{section}: missing, or without a name; a recipe says e.g. `{section}: {{name: …}}`"
            )
        values[section] = build_section(find(own["name"]).Config, own, section)
    config: Config = resolve_rates(build_section(Config, values, ""))
    check(config)
    return config
