"""An encoder from a folder: one of our releases, or any `transformers` folder of a family that we train."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_tools.errors import UserError, nearest
from pretrain.config.schema import build_section
from pretrain.encoders import ENCODERS
from pretrain.encoders.base import Encoder

SETTINGS_KEY = "masquerade"
"""Where a release's `config.json` keeps the encoder's own settings, those that `transformers` has no word for."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
CONFIG_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
HEADS = ("pooler.", "classifier.", "score.", "lm_head.", "cls.", "head.", "decoder.")
"""Parameters of heads that a folder may hold and an encoder does without."""
FEW = 4
"""Faults that still fit a line."""


@dataclass(frozen=True)
class ModelFolder:
    """Stands in for the data set where an encoder takes its tokenizer from: here it lies beside the weights."""

    folder: Path


def load_encoder(folder: Path) -> Encoder:
    """Build the family that the folder's `model_type` names, with the folder's settings and weights.

    Raises:
        UserError: not such a folder, a family we do not know, code or pickles instead of tensors, tensors missing.
    """
    values = read_model_config(folder)
    family = family_of(values.get("model_type"), folder)
    require_safetensors(folder)
    settings = values.get(SETTINGS_KEY) or family.settings_from(folder, values)
    config = build_section(family.Config, settings, str(folder / "config.json"))
    encoder = family(config, ModelFolder(folder))  # type: ignore[arg-type]
    load_weights(encoder, folder)
    return encoder


def read_model_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, once it is certain that no code comes with it."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: not an encoder (no config.json); give a folder that `python -m pretrain release` or "
            "save_pretrained wrote"
        )
    for name in CONFIG_FILES:
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise UserError(
                f"{folder / name}: has auto_map, so it runs code from the folder, which is never done; "
                "export the model as a class of transformers"
            )
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({type(error).__name__}); release it again"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not settings; release it again")
    return values


def family_of(model_type: Any, folder: Path) -> type[Encoder]:
    """The encoder class that opens folders of this `model_type`."""
    known = {name: family for family in ENCODERS.values() for name in family.model_types}
    if model_type not in known:
        raise UserError(
            f"model_type={model_type!r} ({folder / 'config.json'}): no encoder family opens it;"
            f"{nearest(str(model_type), list(known))} known: {', '.join(known)}"
        )
    return known[model_type]


def require_safetensors(folder: Path) -> None:
    if any(folder.glob("model*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: weights in this format can run code when they are read, which is never done; "
            "convert them to model.safetensors"
        )
    raise UserError(f"{folder}: has no model.safetensors; copy the folder again, whole")


def load_weights(encoder: Encoder, folder: Path) -> None:
    """Put the folder's model in the place of the encoder's own, with what trains in it as the family has it.

    The folder's `config.json` decides about everything that is not a setting of ours (norm epsilon, activation).
    """
    own = encoder.model
    loaded, report = open_model(type(own), folder, getattr(own.config, "_attn_implementation", None))
    refuse_gaps(report, folder)
    for (name, before), (loaded_name, after) in zip(
        own.named_parameters(), loaded.named_parameters(), strict=True
    ):
        if name != loaded_name or before.shape != after.shape:
            raise UserError(
                f"{folder}: {loaded_name} is not {name} {tuple(before.shape)} as its settings say"
            )
        after.requires_grad_(before.requires_grad)
    encoder.model = loaded.train(own.training)


def open_model(model_class: Any, folder: Path, attention: str | None) -> tuple[Any, dict[str, Any]]:
    """The folder's model at its own sizes, and what `transformers` says about missing and unexpected tensors."""
    require_safetensors(folder)
    no_progress_bars()
    try:
        return model_class.from_pretrained(
            folder,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation=attention,
            **without_pooler(model_class),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be opened ({' '.join(str(error).split())[:300]})") from None


def refuse_gaps(report: dict[str, Any], folder: Path, allowed: tuple[str, ...] = ()) -> None:
    """Raise a `UserError` naming every tensor that is missing, misshapen, or unexpected and no head's.

    What one of the `allowed` patterns fits (`encoder.layer.11.*`) is not counted.
    """
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [f"{name} has another shape" for name in sorted(map(str, report["mismatched_keys"]))]
    faults += [
        f"{name} is unexpected"
        for name in sorted(report["unexpected_keys"])
        if not any(f".{name}".find(f".{head}") >= 0 for head in HEADS)
    ]
    faults = [f for f in faults if not any(fnmatch(f.split(" ")[0], pattern) for pattern in allowed)]
    if faults:
        raise UserError(
            f"{folder}: model.safetensors does not fit config.json; release it again: {enumerated(faults)}"
        )


def enumerated(faults: list[str]) -> str:
    """Every one of them: on a line while they are few, else each on its own."""
    return "; ".join(faults) if len(faults) <= FEW else "".join(f"\n  {fault}" for fault in faults)


def no_progress_bars() -> None:
    """Opening and writing a few tensors needs no progress bar between our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def without_pooler(model_class: type[nn.Module]) -> dict[str, bool]:
    """`add_pooling_layer=False` for the classes that would otherwise add a pooler of random weights."""
    has_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}
