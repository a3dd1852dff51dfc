"""A folder with a `transformers` model, one of our releases or anybody's: what it says of itself, its tensors."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_tools.errors import UserError, nearest
from pretrain.encoders import ENCODERS, encoder_class
from pretrain.encoders.base import Encoder
from pretrain.encoders.hf_model import without_pooler

log = logging.getLogger(__name__)
SETTINGS_KEY = "masquerade"
"""Where a release's `config.json` keeps the encoder's own settings, those that `transformers` has no word for."""
LATER = frozenset({"background", "value_range"})
"""Settings that no folder says, and that came when runs kept all others already."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
CONFIG_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs"
LARGEST_HEADER = 100 * 2**20
"""Bytes that safetensors itself takes at most for the table of a file's tensors."""


@dataclass(frozen=True)
class ModelFolder:
    """Stands in for the data set where an encoder takes its tokenizer from: here it lies beside the weights."""

    folder: Path


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, of which nothing is in memory before it is read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    is_float: bool = True
    """Not a counter (of a batch norm)."""

    def read(self) -> Tensor:
        """The tensor as it is stored, mapped: what is not looked at takes no memory, and none is kept afterwards."""
        with safe_open(self.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.key)
        return tensor


def resolve_encoder(own: dict[str, Any]) -> dict[str, Any]:
    """The encoder section `own` with what the folder in its `from_pretrained` says wherever it is silent.

    The result describes the model wholly: a run that goes on, or is released, needs no folder.

    Raises:
        UserError: no such folder, another family than `name`.
    """
    if not isinstance(own["from_pretrained"], str):
        raise UserError(f"encoder.from_pretrained={own['from_pretrained']!r}: give the path of a folder")
    folder = Path(own["from_pretrained"])
    schema = {f.name for f in fields(encoder_class(own["name"]).Config)} - LATER if "name" in own else None
    if schema is not None and set(own) >= schema and own["transformers"] is not None:
        return own  # resolved before: the configuration of a run
    if schema is not None and set(own) >= schema - {"transformers"}:
        return resolve_old_run(own, folder)
    settings = read_settings(folder)
    if own.get("name", settings["name"]) != settings["name"]:
        raise UserError(
            f"encoder.name={own['name']!r}: {folder} holds a {settings['name']!r}; leave encoder.name out"
        )
    more = own.get("transformers") or {}
    merged = {**settings, **own, "transformers": {**settings["transformers"], **more}}
    if merged.get("num_channels") != settings.get("num_channels"):
        for name in ("image_mean", "image_std"):  # one value for whatever channels there are now
            if name not in own and len(settings[name]) > 1:
                merged[name] = [sum(settings[name]) / len(settings[name])]
    return merged


def resolve_old_run(own: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The encoder section of a run that was begun before runs kept the folder's configuration.

    It trained with the folder's at first, so that is taken while it is there; when it is gone, the family's defaults.
    """
    if not (folder / "config.json").is_file():
        log.warning(
            "encoder.from_pretrained=%s: is not there any more, and this run has not kept its config.json: what no "
            "setting says (norm epsilon, activation, scaled positions) is the family's default",
            folder,
        )
        return own
    log.warning(
        "encoder.from_pretrained=%s: this run has not kept its config.json; taken as it lies there", folder
    )
    return {**own, "transformers": read_settings(folder)["transformers"]}


def read_settings(folder: Path) -> dict[str, Any]:
    """The encoder's settings that stand for a folder's model wholly, `name` among them.

    Raises:
        UserError: not such a folder, code in it, a family we do not know, a configuration `transformers` cannot read.
    """
    values = read_model_config(folder)
    family = family_of(values.get("model_type"), folder)
    settings = values.get(SETTINGS_KEY)
    if settings is None:
        settings = family.settings_from(folder, values)
    else:
        settings = {**settings, "transformers": family.settings_from(folder, values)["transformers"]}
    return {"name": next(iter(family.model_types)), **settings}


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


def find_tensors(model_class: Any, folder: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Where the folder's tensors are, by the names that the model has for them; no weight is read.

    Returns:
        The tensors, and what `transformers` says about missing and unexpected ones.
    Raises:
        UserError: no weights, pickles in their place, or files that are not whole.
    """
    files = weight_files(folder)
    for file in files:
        refuse_broken_file(file)
    no_progress_bars()
    try:
        stored = {tensor.key: tensor for file in files for tensor in list_tensors(file)}
        # `transformers` knows the old names and prefixes: it loads stand-ins of one number each, whose storages tell
        # which went where.
        stand_ins = {key: stand_in_for(tensor) for key, tensor in stored.items()}
        model, loading = model_class.from_pretrained(
            None,
            config=model_class.config_class.from_pretrained(folder, local_files_only=True),
            state_dict=stand_ins,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,
            **without_pooler(model_class),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be opened ({' '.join(str(error).split())[:300]})") from None
    keys = {stand_in.untyped_storage()._cdata: key for key, stand_in in stand_ins.items()}
    found = {}
    for name, tensor in model.state_dict().items():
        key = keys.get(tensor.untyped_storage()._cdata)
        if key is not None:
            found[name] = stored[key]
        elif name not in loading["missing_keys"]:
            raise UserError(
                f"{folder}: {name} is made of several tensors of an older layout; open the folder with this version of "
                "transformers and save it again with save_pretrained"
            )
    return found, loading


def list_tensors(path: Path) -> list[StoredTensor]:
    """What a safetensors file holds."""
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return [
            StoredTensor(path, key, tuple(part.get_shape()), "F" in part.get_dtype())
            for key, part in slices.items()
        ]


def stand_in_for(tensor: StoredTensor) -> Tensor:
    """One number in a storage of its own that has the tensor's shape, and a type that nobody would convert."""
    return torch.zeros((), dtype=torch.float32 if tensor.is_float else torch.int64).expand(tensor.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder's model.

    Raises:
        UserError: there are none, or pickles in their place, or some of those that the index names are missing.
    """
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        named = read_json(folder / INDEX).get("weight_map")
        files = [folder / name for name in sorted(set(named.values()))] if isinstance(named, dict) else []
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{folder}: lacks {', '.join(missing)}, which {INDEX} names; copy it again, whole"
            )
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: weights in this format can run code when they are read, which is never done; "
            "convert them to model.safetensors"
        )
    raise UserError(f"{folder}: has no model.safetensors; copy the folder again, whole")


def refuse_broken_file(path: Path) -> None:
    """Raise a `UserError` for a safetensors file that is cut, or the pointer that Git-LFS leaves in its place."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS))
        if start == LFS:
            raise UserError(
                f"{path}: is a Git-LFS pointer, not the weights; fetch them with `git lfs pull` in that folder"
            )
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise UserError(f"{path}: {size:,} bytes are no whole safetensors file; copy it again, whole")
        file.seek(8)
        try:
            tensors = [v for k, v in json.loads(file.read(length)).items() if k != "__metadata__"]
            end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise UserError(
                f"{path}: its table of tensors cannot be read; copy the file again, whole"
            ) from None
    if size < end:
        raise UserError(f"{path}: is cut, {size:,} of {end:,} bytes; copy it again, whole")


def no_progress_bars() -> None:
    """Opening and writing a few tensors needs no progress bar between our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
