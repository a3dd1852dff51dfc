"""Continued pretraining: an encoder that starts from a folder's weights, fitted where sizes were chosen to differ."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.encoders import encoder_class
from pretrain.encoders.base import Encoder
from pretrain.weights.from_transformers import (
    SETTINGS_KEY,
    family_of,
    open_model,
    read_model_config,
    refuse_gaps,
    without_pooler,
)

MAY_DIFFER = ("image_size", "num_channels", "max_position_embeddings", "n_positions")
"""Settings that may be other than the folder's: what depends on them is fitted."""


@dataclass
class LoadingReport:
    """What of a folder was loaded, and how."""

    folder: str
    loaded: int = 0
    """Tensors taken as they are."""
    fitted: list[str] = field(default_factory=list)
    """Tensors that were fitted to another size, and how."""
    missing: list[str] = field(default_factory=list)
    """Tensors that the folder lacks and that keep their initial values, as was allowed."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the folder that an encoder does without: heads."""

    def values(self) -> dict[str, Any]:
        """As an event of a run holds it."""
        return {"folder": self.folder, "tensors": self.loaded, "fitted": self.fitted, "missing": self.missing,
                "unused": self.unused}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"loaded {self.loaded} tensors from {self.folder}"]
        lines += [f"  fitted  {line}" for line in self.fitted]
        lines += [f"  missing {name}" for name in self.missing]
        lines += [f"  unused  {name}" for name in self.unused]
        return "\n".join(lines)


def settings_of_folder(own: dict[str, Any]) -> dict[str, Any]:
    """The encoder section `own` with what the folder in its `from_pretrained` says wherever it is silent.

    Raises:
        UserError: no such folder, another family than `name`, or a setting that cannot differ from the folder's.
    """
    folder = Path(own["from_pretrained"])
    if "name" in own and set(own) >= {f.name for f in fields(encoder_class(own["name"]).Config)}:
        return own  # resolved before: the configuration of a run that goes on
    values = read_model_config(folder)
    family = family_of(values.get("model_type"), folder)
    settings = values.get(SETTINGS_KEY) or family.settings_from(folder, values)
    settings.setdefault("name", next(iter(family.model_types)))
    if own.get("name", settings["name"]) != settings["name"]:
        raise UserError(
            f"encoder.name={own['name']!r}: {folder} holds a {settings['name']!r}; leave encoder.name out"
        )
    merged = {**settings, **own}
    if merged.get("num_channels") != settings.get("num_channels"):
        for name in ("image_mean", "image_std"):  # one value for whatever channels there are now
            if name not in own and len(settings[name]) > 1:
                merged[name] = [sum(settings[name]) / len(settings[name])]
    return merged


def load_pretrained(encoder: Encoder, folder: Path, allowed: tuple[str, ...] = ()) -> LoadingReport:
    """Give an encoder the weights of a folder of its family.

    Position embeddings are interpolated (bicubic over an image's grid, linear over a text's length) and the kernels of
    the first layer summed or repeated over channels where sizes differ. What is no setting of ours (norm epsilon,
    activation) is the folder's.

    Args:
        allowed: patterns of tensors that may be missing from the folder, or unexpected in it.
    Raises:
        UserError: no such folder, another tokenizer, or tensors that are missing, unexpected or cannot be fitted.
    """
    refuse_other_tokenizer(encoder, folder)
    own = encoder.model
    source, gaps = open_model(type(own), folder, getattr(own.config, "_attn_implementation", None))
    refuse_gaps(gaps, folder, allowed)
    report = LoadingReport(
        str(folder), missing=sorted(gaps["missing_keys"]), unused=sorted(gaps["unexpected_keys"])
    )
    wanted = copy.deepcopy(source.config)
    for name in MAY_DIFFER:
        if hasattr(own.config, name):
            setattr(wanted, name, getattr(own.config, name))
    wanted._attn_implementation = getattr(own.config, "_attn_implementation", None)
    tensors = source.state_dict()
    missing = set(gaps["missing_keys"])
    state = {}
    for name, mine in own.state_dict().items():
        if name not in tensors or name in missing:
            state[name] = mine
            continue
        state[name], how = fit(name, tensors[name], mine.shape, folder)
        report.loaded += how is None
        if how:
            report.fitted.append(f"{name} {tuple(tensors[name].shape)} → {tuple(mine.shape)}, {how}")
    model = type(own)(wanted, **without_pooler(type(own)))
    model.load_state_dict(state)
    for parameter, mine in zip(model.parameters(), own.parameters(), strict=True):
        parameter.requires_grad_(mine.requires_grad)
    encoder.model = model.train(own.training)
    return report


def refuse_other_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Token numbers mean nothing to an encoder that learned them from another tokenizer."""
    own = getattr(encoder, "tokenizer_folder", None)
    files = [(place / "tokenizer.json") for place in (own, folder) if place]
    if len(files) == 2 and all(f.is_file() for f in files) and files[0].read_bytes() != files[1].read_bytes():
        raise UserError(
            f"encoder.from_pretrained={folder}: learned with another tokenizer than the data's ({own}); tokenize the "
            f"data with `python -m data_tools tokenize --tokenizer {folder}`"
        )


def fit(name: str, tensor: Tensor, shape: torch.Size, folder: Path) -> tuple[Tensor, str | None]:
    """A tensor in another shape, and how it was fitted (None: the shapes are the same).

    Raises:
        UserError: nothing is known that would fit it.
    """
    if tensor.shape == shape:
        return tensor, None
    if "position_embeddings" in name and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
        return interpolate_grid(tensor, shape[1]), "interpolated over the grid"
    if ("position_embeddings" in name or name == "wpe.weight") and tensor.shape[1:] == shape[1:]:
        return interpolate_length(tensor, shape[0]), "interpolated over the length"
    if tensor.ndim == 4 and (tensor.shape[0], *tensor.shape[2:]) == (shape[0], *shape[2:]):
        return fit_channels(tensor, shape[1]), f"{tensor.shape[1]} → {shape[1]} channels"
    raise UserError(
        f"{folder}: {name} has shape {tuple(tensor.shape)}, the encoder's settings ask for {tuple(shape)}; leave those "
        f"settings out (only {', '.join(MAY_DIFFER)} may differ from the folder's)"
    )


def interpolate_grid(positions: Tensor, count: int) -> Tensor:
    """(1, 1 + n², D) → (1, count, D), the class token's first and as it is (MAE's util/pos_embed.py)."""
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(count - 1)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def interpolate_length(positions: Tensor, count: int) -> Tensor:
    """(L, D) → (count, D): cut where it gets shorter, stretched where it gets longer."""
    if count <= len(positions):
        return positions[:count].clone()
    stretched = F.interpolate(
        positions.T[None], size=count, mode="linear", align_corners=True
    )  # (1, D, count)
    return stretched[0].T.contiguous()


def fit_channels(kernels: Tensor, channels: int) -> Tensor:
    """(D, c, p, p) → (D, channels, p, p): an image of equal channels keeps its response.

    Exactly so where the channels become one or some multiple; else its scale is kept.
    """
    old = kernels.shape[1]
    if channels == 1:
        return kernels.sum(1, keepdim=True)
    repeats = -(-channels // old)
    return kernels.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)
