"""`python -m pretrain list`: the objectives, the encoders, which runs on which, and the recipes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from transformers import MODEL_MAPPING

from pretrain.config.load import RECIPES
from pretrain.encoders import ENCODERS
from pretrain.encoders.base import Encoder
from pretrain.objectives import OBJECTIVES
from pretrain.objectives.base import Objective
from pretrain.objectives.pairs import CAPABILITIES, all_pairs

WIDTH = 100
RUNS, CANNOT = "yes", "·"
COMMANDS = ("python ", "torchrun ")


def list_all() -> dict[str, Any]:
    """All of it as plain values. Needs no data and builds no network."""
    recipes = {path.stem: read_head(path.read_text("utf-8")) for path in sorted(RECIPES.glob("*.yaml"))}

    def recipes_of(section: str, name: str) -> list[str]:
        return [recipe for recipe, about in recipes.items() if about[section] == name]

    return {
        "objectives": {
            name: describe_objective(objective) | {"recipes": recipes_of("objective", name)}
            for name, objective in OBJECTIVES.items()
        },
        "encoders": {
            name: describe_encoder(encoder) | {"recipes": recipes_of("encoder", name)}
            for name, encoder in ENCODERS.items()
        },
        "pairs": {name: dict(row) for name, row in all_pairs().items()},
        "recipes": recipes,
    }


def describe_objective(objective: type[Objective]) -> dict[str, Any]:
    return {
        "hides": objective.hides,
        "needs": list(objective.needs),
        "releases": objective.product,
        "companions": objective.companions is not Objective.companions,
        "likelihood": objective.is_likelihood,
        "pictures": objective.picture is not Objective.picture,
    }


def describe_encoder(encoder: type[Encoder]) -> dict[str, Any]:
    model: Any = MODEL_MAPPING[encoder.HFConfig] if encoder.HFConfig is not None else None
    return {
        "modality": encoder.modality,
        "transformers": model.__name__ if model is not None else None,
        "gives": [name for name in CAPABILITIES if name in encoder.gives],
        "released": encoder.save is not Encoder.save,
    }


def read_head(text: str) -> dict[str, str]:
    """A recipe's objective and encoder by name, and the first sentence of its head comment that is no command."""
    head = re.match(r"(?:#.*\n)*", text)
    lines = [line.lstrip("#").strip() for line in (head.group() if head else "").splitlines()]
    prose = " ".join(line for line in lines if not line.startswith(COMMANDS))
    values = yaml.safe_load(text)
    return {
        "objective": values["objective"]["name"],
        "encoder": values["encoder"]["name"],
        "about": re.split(r"(?<=[^A-Z]\.) (?=[A-Z])", prose, maxsplit=1)[0],
    }


def format_list(found: Mapping[str, Any]) -> str:
    """What `list_all` found, for people, in lines of at most `WIDTH` characters."""
    parts = [f"Which objective runs on which encoder ({RUNS}: it runs)"]
    for modality in dict.fromkeys(about["modality"] for about in found["encoders"].values()):
        encoders = [name for name, about in found["encoders"].items() if about["modality"] == modality]
        parts += format_matrix(found["pairs"], encoders, f"encoders of {modality}")
    objectives = [(name, line_of_objective(about)) for name, about in found["objectives"].items()]
    encoders = [(name, line_of_encoder(about)) for name, about in found["encoders"].items()]
    recipes = [(name, about["about"]) for name, about in found["recipes"].items()]
    parts += [
        format_lines("Objectives", objectives),
        format_lines("Encoders", encoders),
        format_lines("Recipes", recipes, cut=True),
    ]
    return "\n\n".join(parts)


def format_matrix(pairs: Mapping[str, Mapping[str, Any]], encoders: list[str], title: str) -> list[str]:
    """A row for each objective that runs on one of the encoders at least, and why on some it does not."""
    rows = {name: row for name, row in pairs.items() if not all(row[encoder] for encoder in encoders)}
    margin = max(map(len, (title, *rows))) + 2
    parts = []
    for columns in fit_columns(encoders, WIDTH - margin):
        height = max(len(stack(name)) for name in columns)
        heads = [[""] * (height - len(stack(name))) + stack(name) for name in columns]
        widths = [max(map(len, head)) + 2 for head in heads]
        lines = [
            (title if level == height - 1 else "").ljust(margin)
            + "".join(head[level].ljust(width) for head, width in zip(heads, widths, strict=True))
            for level in range(height)
        ]
        for name, row in rows.items():
            cells = [CANNOT if row[encoder] else RUNS for encoder in columns]
            lines.append(name.ljust(margin) + "".join(map(str.ljust, cells, widths)))
        parts.append("\n".join(line.rstrip() for line in lines))
    reasons: dict[str, list[str]] = {}
    for name, row in rows.items():
        for encoder in encoders:
            if reason := row[encoder]:
                reasons.setdefault(f"{name}: {reason}", []).append(encoder)
    why = [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return [*parts, "\n".join(map(wrap, why))] if why else parts


def stack(name: str) -> list[str]:
    """A name in lines, so that its column is narrow."""
    *most, last = name.split("_")
    return [*(f"{part}_" for part in most), last]


def fit_columns(names: list[str], width: int) -> list[list[str]]:
    """Names in groups whose columns fit beside each other."""
    groups: list[list[str]] = []
    left = 0
    for name in names:
        needed = max(map(len, stack(name))) + 2
        if not groups or needed > left:
            groups.append([])
            left = width
        groups[-1].append(name)
        left -= needed
    return groups


def line_of_objective(about: Mapping[str, Any]) -> str:
    needs = ", ".join(CAPABILITIES[name] for name in about["needs"]) or "any encoder"
    gives = [f"the {about['releases']}", *(["a model beside it"] if about["companions"] else [])]
    gives += ["a likelihood"] * about["likelihood"] + ["pictures"] * about["pictures"]
    recipes = ", ".join(about["recipes"]) or "none"
    return f"hides {about['hides']}; needs {needs}; gives {', '.join(gives)}; recipes: {recipes}"


def line_of_encoder(about: Mapping[str, Any]) -> str:
    gives = ", ".join(CAPABILITIES[name] for name in about["gives"])
    model = about["transformers"] or "no model of transformers"
    return (
        f"{model}; {about['modality']}; gives {gives}; {'released' if about['released'] else 'not released'}"
    )


def format_lines(title: str, lines: Iterable[tuple[str, str]], cut: bool = False) -> str:
    """A title, and each name before its text, which goes on below itself, or is cut to one line."""
    lines = list(lines)
    margin = max(len(name) for name, _ in lines) + 2
    texts = [textwrap.shorten(text, WIDTH - margin, placeholder=" …") if cut else text for _, text in lines]
    return "\n".join(
        [
            title,
            *(wrap(name.ljust(margin) + text, margin) for (name, _), text in zip(lines, texts, strict=True)),
        ]
    )


def wrap(text: str, margin: int = 4) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=" " * margin, drop_whitespace=True, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
