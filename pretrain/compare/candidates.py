"""Who takes part: the demo recipe of each objective, made to fit the data, on one encoder wherever that can be."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
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
from pretrain.objectives.pairs import find_obstacle

DEMO_DATA = "sample:"
"""What the data of a recipe of demo size begin with."""
GRID = 8
"""Patches along a side, at most, where the recipe's images have another size."""


@dataclass(frozen=True)
class Candidate:
    """An objective with all settings of its runs, but for how long they are."""

    name: str
    values: dict[str, Any]
    note: str = ""
    """What a reader of the table must know of it."""

    @property
    def encoder(self) -> str:
        return str(self.values["encoder"].get("name", "as given"))

    @property
    def objective(self) -> str:
        return str(self.values["objective"]["name"])


Recipes = dict[str, dict[str, Any]]
Reasons = dict[str, str]


def find_candidates(options: Options, samples: Samples) -> tuple[list[Candidate], Reasons]:
    """The candidates that can be built for these data, and why each of the others cannot.

    Raises:
        UserError: a name, a recipe or a setting that is not there; nobody is left.
    """
    recipes, left_out = choose_recipes(options.objectives, samples.modality)
    own = {name.partition("=")[0] for name in options.objectives if "=" in name}
    overrides = read_settings(options.settings, [*recipes, *left_out])
    shared = choose_encoder({name: values for name, values in recipes.items() if name not in own})
    found = []
    for name, recipe in recipes.items():
        try:
            found.append(build_candidate(name, recipe, None if name in own else shared, samples, overrides))
        except UserError as error:
            left_out[name] = str(error)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"--objectives: none of them can be compared on these data ({reasons})")
    return found, left_out


def choose_recipes(asked: Iterable[str], modality: str) -> tuple[Recipes, Reasons]:
    """The recipe of each candidate, by its name, and why an objective has none."""
    demos, recipes, left_out = find_demos(modality), {}, {}
    for entry in tuple(asked) or tuple(OBJECTIVES):
        name, _, path = entry.partition("=")
        if name in recipes or name in left_out:
            raise UserError(
                f"--objectives: {name} is named twice; give one of them another name, name=recipe.yaml"
            )
        if path:
            recipes[name] = load_recipe(path)[0]
        elif name in demos:
            recipes[name] = load_recipe(demos[name])[0]
        elif name in OBJECTIVES:
            left_out[name] = f"has no demo recipe for data of kind {modality}; give one, {name}=recipe.yaml"
        else:
            raise UserError(
                f"--objectives: no objective is called {name!r};{nearest(name, list(OBJECTIVES))} known: "
                f"{', '.join(OBJECTIVES)}; or give name=recipe.yaml"
            )
    return recipes, left_out


def find_demos(modality: str) -> dict[str, str]:
    """By objective, the demo recipe for data of a modality; of several, the one with the shortest name."""
    demos: dict[str, str] = {}
    for name in sorted((path.stem for path in RECIPES.glob("*.yaml")), key=lambda name: (len(name), name)):
        values = load_recipe(name)[0]
        path = values.get("data", {}).get("path")
        fits = encoder_class(values["encoder"]["name"]).modality == modality
        if fits and isinstance(path, str) and path.startswith(DEMO_DATA):
            demos.setdefault(values["objective"]["name"], name)
    return demos


def read_settings(settings: Iterable[str], names: list[str]) -> dict[str, list[str]]:
    """`--set name:key=value` by name.

    Raises:
        UserError: not written so, or no such candidate.
    """
    known, found = [*names, "all", "finetune"], dict[str, list[str]]()
    for setting in settings:
        name, colon, rest = setting.partition(":")
        if not colon or "=" not in rest:
            raise UserError(f"--set {setting}: write name:key=value, e.g. {names[0]}:optimizer.lr=1e-3")
        if name not in known:
            raise UserError(f"--set {setting}: no candidate is called {name!r};{nearest(name, known)}")
        found.setdefault(name, []).append(rest)
    return found


def choose_encoder(recipes: Recipes) -> dict[str, Any] | None:
    """The encoder, of those of the recipes, that goes with most of the objectives; the first of equals."""
    fitting = Counter[str]()
    for name, recipe in recipes.items():
        family = encoder_class(recipe["encoder"]["name"])
        fitting[name] = sum(
            find_obstacle(objective_class(other["objective"]["name"]), family) is None
            for other in recipes.values()
        )
    return recipes[fitting.most_common(1)[0][0]] if fitting else None


def build_candidate(
    name: str,
    recipe: dict[str, Any],
    shared: dict[str, Any] | None,
    samples: Samples,
    overrides: Mapping[str, list[str]],
) -> Candidate:
    """A candidate on the shared encoder, else on that of its own recipe; as it is where there is none to share.

    Args:
        shared: the recipe whose encoder all have that can.
    Raises:
        UserError: its settings contradict each other or the data.
    """
    asked = [*overrides.get("all", []), *overrides.get(name, [])]
    if shared is None or shared["encoder"] == recipe["encoder"]:
        return build(name, recipe, samples, asked)
    try:
        return build(name, {**recipe, "encoder": shared["encoder"]}, samples, asked, recipe)
    except UserError as error:
        note = f"on its own encoder, {recipe['encoder']['name']}: {error}"
        return build(name, recipe, samples, asked, note=note)


def build(
    name: str,
    recipe: dict[str, Any],
    samples: Samples,
    asked: list[str],
    before: dict[str, Any] | None = None,
    note: str = "",
) -> Candidate:
    """Fit a recipe to the data, apply settings, and build its networks once to see that they can be.

    Args:
        before: the recipe while it still had its own encoder.
    """
    from pretrain.run.run import build_objective

    values = copy.deepcopy(recipe)
    values.pop("probe", None)
    values["name"] = name
    values["data"] = {**values.get("data", {}), "path": str(samples.train)}
    if samples.image and "from_pretrained" not in values["encoder"]:
        fit_to_images(values, samples.image, (before or recipe)["encoder"])
    for text in asked:
        values = override(values, *parse_override(text))
    build_objective(build_config(values), open_dataset(str(samples.train)))
    return Candidate(name, values, note)


def fit_to_images(values: dict[str, Any], image: ImageFacts, before: dict[str, Any]) -> None:
    """Give encoder and objective the size, channels and scale of these images.

    Args:
        before: the encoder that the objective's settings were chosen for.
    """
    encoder, objective = values["encoder"], values["objective"]
    if encoder.get("image_size", image.size) != image.size:
        encoder["patch_size"] = choose_patch(image.size)
    encoder |= {"image_size": image.size, "num_channels": image.channels}
    encoder |= {"image_mean": list(image.mean), "image_std": list(image.std)}
    if "hole_size" in objective:  # a share of the image
        objective["hole_size"] = round(objective["hole_size"] * image.size / before["image_size"])
    if "mask_patch_size" in objective and "patch_size" in encoder:  # whole patches
        patches = max(1, round(objective["mask_patch_size"] / before["patch_size"]))
        objective["mask_patch_size"] = patches * encoder["patch_size"]
    if "pixel_variance" in objective:
        objective["pixel_variance"] = round(sum(s * s for s in image.std) / len(image.std), 4)


def choose_patch(size: int) -> int:
    """The smallest patch of which at most `GRID` stand along a side."""
    return next(patch for patch in range(1, size + 1) if size % patch == 0 and size // patch <= GRID)


def continue_from(candidate: Candidate, folder: Path, samples: Samples) -> Candidate:
    """The candidate's objective on the encoder in a folder, from its weights.

    Raises:
        UserError: they cannot go together.
    """
    from pretrain.run.run import build_objective

    values = copy.deepcopy(candidate.values)
    values["encoder"] = {"from_pretrained": str(folder)}
    values["name"] = f"{candidate.name}_continued"
    build_objective(build_config(values), open_dataset(str(samples.train)))
    return Candidate(values["name"], values)
