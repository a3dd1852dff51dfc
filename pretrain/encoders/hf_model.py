"""The `transformers` model of an encoder: its configuration, from our settings and a folder's, and its building."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from data_tools.errors import UserError, nearest

OWN_SETTINGS = ("name", "from_pretrained", "transformers", "max_length", "pooling")
"""Settings of an encoder that are not the `transformers` model's."""
NOT_THE_MODELS = (
    "transformers_version",
    "architectures",
    "model_type",
    "_name_or_path",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "use_cache",
    "tie_word_embeddings",
)
"""What a `config.json` says beside what the base model computes: of files, of heads, of what is returned."""


def build_hf_config(
    config_class: Any, config: Any, derived: Iterable[str], defaults: dict[str, Any], values: dict[str, Any]
) -> Any:
    """An encoder's settings as its `transformers` configuration.

    Args:
        config: the encoder's settings. Those that `transformers` calls the same are taken as they are, None apart, and
            over `config.transformers`.
        derived: names in `transformers` that follow from settings with other names.
        defaults: what the family has where neither settings nor `config.transformers` say anything.
        values: what follows from the settings; over all else.
    Raises:
        UserError: `config.transformers` has a name that `transformers` does not know, or that is a setting.
    """
    known = config_class().to_dict()
    more = config.transformers or {}
    for name in more:
        if name not in known or name in NOT_THE_MODELS or name in derived:
            names = [n for n in known if n not in NOT_THE_MODELS and n not in derived]
            raise UserError(
                f"encoder.transformers.{name}: not a setting of {config_class.__name__} that can be given;"
                f"{nearest(str(name), names)} known: {', '.join(names)}"
            )
        if name in settings_in(config_class, type(config)):
            raise UserError(f"encoder.transformers.{name}: is a setting of its own; give encoder.{name}")
    own = {name: getattr(config, name) for name in settings_in(config_class, type(config))}
    own = {name: value for name, value in own.items() if value is not None}
    return config_class(**{**defaults, **more, **own, **values})


def settings_in(config_class: Any, schema: Any) -> list[str]:
    """The settings of an encoder's `schema` that `transformers` has by the same name."""
    known = config_class().to_dict()
    return [f.name for f in fields(schema) if f.name in known and f.name not in OWN_SETTINGS]


def read_hf_config(config_class: Any, values: dict[str, Any], folder: Path) -> Any:
    """The configuration that a folder's `config.json` `values` make, in the present spelling of `transformers`."""
    try:
        return config_class.from_dict(values)
    except Exception as error:  # transformers raises several kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / 'config.json'}: transformers cannot read it ({reason})") from None


def split_settings(hf: Any, schema: Any, derived: Iterable[str]) -> dict[str, Any]:
    """A `transformers` configuration as settings of `schema`, with what they have no word for under `transformers`."""
    whole = json.loads(hf.to_json_string(use_diff=False))  # plain values only
    own = settings_in(type(hf), schema)
    known = [name for name in type(hf)().to_dict() if name not in (*own, *derived, *NOT_THE_MODELS)]
    rest = {name: whole[name] for name in known if name in whole}
    return {**{name: whole[name] for name in own if name in whole}, "transformers": rest}


def build_hf_model(model_class: Any, hf_config: Any) -> Any:
    """The base model of that configuration with fresh weights. Every encoder's model is built here."""
    return model_class(hf_config, **without_pooler(model_class))


def without_pooler(model_class: type[nn.Module]) -> dict[str, bool]:
    """`add_pooling_layer=False` for the classes that would otherwise add a pooler of random weights."""
    has_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


def pooler_option(model_class: type[nn.Module]) -> str:
    """The same as further arguments in code, each after a comma."""
    return "".join(f", {name}={value}" for name, value in without_pooler(model_class).items())
