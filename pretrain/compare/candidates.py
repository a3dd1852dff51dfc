"""Who takes part: the demo recipe of each objective, made to fit the data, on one encoder wherever that can be."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError, nearest
from pretrain.compare.options import Options
from pretrain.compare.samples import ImageFacts, Samples
from pretrain.config.load import RECIPES, build_config, load_recipe, override, parse_override
from pretrain.encoders import encoder_class
from pretrain.objectives import OBJECTIVES, objective_class
from pretrain.objectives.base import Objective
from pretrain.objectives.pairs import find_obstacle

DEMO_DATA = "sample:"
"""What the data of a recipe of demo size begin with."""
RESERVED = ("all", "finetune")
"""What `--set` knows beside the candidates' names."""
GRID = 8
"""Patches along a side, at most, where the recipe's images have another size."""
Recipe = dict[str, Any]
Reasons = dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """An objective with all settings of its runs, but for how long they are."""

    name: str
    values: Recipe
    note: str = ""
    """What a reader of the table must know of it."""

    @property
    def encoder(self) -> str:
        return str(self.values["encoder"].get("name", "as given"))


def find_candidates(options: Options, samples: Samples) -> tuple[dict[str, Candidate], Reasons]:
    """By name, the candidates that can be built for these data, and why each of the others cannot.

    Raises:
        UserError: a name, a recipe or a setting that is not there; nobody is left.
    """
    recipes, left_out = choose_recipes(options.objectives, samples.modality)
    settings = read_settings(options.settings, [*recipes, *left_out])
    own = {entry.partition("=")[0] for entry in options.objectives if "=" in entry}
    shared = choose_encoder([recipe for name, recipe in recipes.items() if name not in own])
    found = {}
    for name, recipe in recipes.items():
        asked = [*settings.get("all", []), *settings.get(name, [])]
        encoder = recipe["encoder"] if name in own else shared
        try:
            found[name] = fit_candidate(name, recipe, encoder, samples, asked, name in own)
        except UserError as error:
            left_out[name] = str(error)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"--objectives: none of them can be compared on these data ({reasons})")
    return found, left_out


def choose_recipes(asked: Iterable[str], modality: str) -> tuple[dict[str, Recipe], Reasons]:
    """The recipe of each candidate, by its name, and why an objective has none."""
    demos, recipes, left_out = find_demos(modality), dict[str, Recipe](), Reasons()
    for entry in tuple(asked) or tuple(OBJECTIVES):
        name, _, path = entry.partition("=")
        if name in recipes or name in left_out:
            raise UserError(
                f"--objectives: {name} is named twice; give one of them another name, name=recipe.yaml"
            )
        if path and (name in RESERVED or not re.fullmatch(r"[\w-]+", name)):
            raise UserError(
                f"--objectives: {entry}: the name is to be letters, digits, - and _, not {', '.join(RESERVED)}"
            )
        if path:
            recipes[name] = load_recipe(path)[0]
        elif name in demos:
            recipes[name] = demos[name]
        elif name in OBJECTIVES:
            left_out[name] = f"has no demo recipe for data of kind {modality}; give one, {name}=recipe.yaml"
        else:
            raise UserError(
                f"--objectives: no objective is called {name!r};{nearest(name, list(OBJECTIVES))} known: "
                f"{', '.join(OBJECTIVES)}; or give name=recipe.yaml"
            )
    return recipes, left_out


def find_demos(modality: str) -> dict[str, Recipe]:
    """By objective, the demo recipe for data of a modality; of several, the one with the shortest name."""
    demos: dict[str, Recipe] = {}
    for name in sorted((path.stem for path in RECIPES.glob("*.yaml")), key=lambda name: (len(name), name)):
        recipe = load_recipe(name)[0]
        fits = encoder_class(recipe["encoder"]["name"]).modality == modality
        if fits and str(recipe["data"].get("path")).startswith(DEMO_DATA):
            demos.setdefault(recipe["objective"]["name"], recipe)
    return demos


def read_settings(settings: Iterable[str], names: list[str]) -> dict[str, list[str]]:
    """`--set name:key=value` by name.

    Raises:
        UserError: not written so, or no such candidate.
    """
    known, found = [*names, *RESERVED], dict[str, list[str]]()
    for setting in settings:
        name, _, rest = setting.partition(":")
        if "=" in name or "=" not in rest:
            raise UserError(f"--set {setting}: write name:key=value, e.g. {names[0]}:optimizer.lr=1e-3")
        if name not in known:
            raise UserError(f"--set {setting}: no candidate is called {name!r};{nearest(name, known)}")
        found.setdefault(name, []).append(rest)
    return found


def choose_encoder(recipes: list[Recipe]) -> Recipe:
    """The encoder, of those of the recipes, that goes with most of the objectives; the first of equals."""

    def count_fitting(recipe: Recipe) -> int:
        family = encoder_class(recipe["encoder"]["name"])
        objectives = [objective_class(other["objective"]["name"]) for other in recipes]
        return sum(find_obstacle(objective, family) is None for objective in objectives)

    return Recipe(max(recipes, key=count_fitting)["encoder"]) if recipes else {}


def fit_candidate(
    name: str, recipe: Recipe, encoder: Recipe, samples: Samples, asked: list[str], as_it_is: bool
) -> Candidate:
    """A candidate on that encoder, on that of its own recipe where it cannot go with it.

    Args:
        asked: `key=value` of the user.
        as_it_is: whether the recipe was written for these data, and is not made to fit them.
    Raises:
        UserError: its settings contradict each other or the data.
    """
    image = None if as_it_is else samples.image

    def fit(encoder: Recipe) -> Recipe:
        fitting = {**recipe, "encoder": encoder, "name": name}
        values = fit_recipe(fitting, recipe["encoder"], samples, image, asked)
        refuse_labels(build_untrained(values), samples.label)  # built once, to see that it can be
        return values

    try:
        return Candidate(name, fit(encoder))
    except UserError as error:
        own = recipe["encoder"]
        if own == encoder:
            raise
        return Candidate(name, fit(own), f"on its own encoder, {own.get('name', 'as given')} ({error})")


def fit_recipe(
    recipe: Recipe, before: Recipe, samples: Samples, image: ImageFacts | None, asked: list[str]
) -> Recipe:
    """The recipe on the data of the comparison, fitted to its images, with the user's settings."""
    values = copy.deepcopy({key: value for key, value in recipe.items() if key != "probe"})
    values["data"] = {**values.get("data", {}), "path": str(samples.train)}
    if image:
        fit_to_images(values, before, image)
    for text in asked:
        values = override(values, *parse_override(text))
    return values


def fit_to_images(values: Recipe, before: Recipe, image: ImageFacts) -> None:
    """Give encoder and objective the size, channels and scale of these images.

    Args:
        before: the encoder that the objective's settings were chosen for.
    """
    encoder, objective = values["encoder"], values["objective"]
    if "patch_size" in encoder and encoder.get("image_size", image.size) != image.size:
        encoder["patch_size"] = choose_patch(image.size)
    encoder |= {"image_size": image.size, "num_channels": image.channels}
    encoder |= {"image_mean": list(image.mean), "image_std": list(image.std)}
    patch = encoder.get("patch_size", 1)
    larger = image.size / before.get("image_size", image.size)
    if "hole_size" in objective:  # a share of the image
        objective["hole_size"] = round(objective["hole_size"] * larger)
    if "small_size" in objective:  # a share of the image, in whole patches
        objective["small_size"] = max(1, round(objective["small_size"] * larger / patch)) * patch
    if "mask_patch_size" in objective:  # as many patches as before
        objective["mask_patch_size"] = (
            max(1, round(objective["mask_patch_size"] / before.get("patch_size", 1))) * patch
        )
    if "pixel_variance" in objective:
        objective["pixel_variance"] = round(sum(s * s for s in image.std) / len(image.std), 4)


def choose_patch(size: int) -> int:
    """The smallest patch of which at most `GRID` stand along a side."""
    return next(patch for patch in range(1, size + 1) if size % patch == 0 and size // patch <= GRID)


def build_untrained(values: Recipe) -> Objective:
    """The objective of a recipe, with the weights that its run begins with."""
    from pretrain.run.run import build_objective

    config = build_config(values)
    (path,) = config.data.paths.values()
    return build_objective(config, open_dataset(path))


def refuse_labels(objective: Objective, label: str) -> None:
    """Raise a `UserError` where pretraining would read the very labels that the comparison judges by."""
    for name, spec in (getattr(objective.config, "attributes", None) or {}).items():
        if spec.field == label:
            raise UserError(f"its attribute {name} is {label}, by which the comparison judges")


def continue_from(candidate: Candidate, folder: Path) -> Candidate:
    """The candidate's objective on the encoder in a folder, from its weights.

    Raises:
        UserError: they cannot go together.
    """
    values = copy.deepcopy(candidate.values)
    values |= {"encoder": {"from_pretrained": str(folder)}, "name": f"{candidate.name}_continued"}
    build_untrained(values)
    return Candidate(values["name"], values)
