"""An encoder with the weights of a folder: one of our releases, or any `transformers` folder of a known family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.schema import build_section
from pretrain.encoders import encoder_class
from pretrain.encoders.base import Encoder
from pretrain.encoders.text.tokenizer import fingerprint_of
from pretrain.engine.shards import copy_shard
from pretrain.ops.sizes import rows_and_columns
from pretrain.weights.fit import Grid, fit_tensor
from pretrain.weights.gaps import LoadingReport, refuse_gaps
from pretrain.weights.model_folder import ModelFolder, find_tensors, read_model_config, resolve_encoder

HEADS = (
    "pooler.",
    "classifier.",
    "score.",
    "lm_head.",
    "cls.",
    "head.",
    "decoder.",
    "generator_predictions.",
    "generator_lm_head.",
    "discriminator_predictions.",
)
"""Parameters of heads that a folder may hold and an encoder does without."""
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "embeddings.position_ids")
"""What older versions of `transformers` saved though it follows from the configuration."""


def load_encoder(folder: Path) -> Encoder:
    """Build the family that the folder's `model_type` names, with the folder's settings and weights.

    Raises:
        UserError: not such a folder, a family we do not know, code or pickles instead of tensors, tensors missing.
    """
    settings = resolve_encoder({"from_pretrained": str(folder)})
    settings["from_pretrained"] = None
    family = encoder_class(settings["name"])
    config = build_section(family.Config, settings, str(folder / "config.json"))
    encoder: Encoder = family(config, ModelFolder(folder))  # type: ignore[arg-type]
    load_pretrained(encoder, folder)
    return encoder


def load_pretrained(encoder: Encoder, folder: Path, allowed: tuple[str, ...] = ()) -> LoadingReport:
    """Give an encoder the weights of a folder of its family. What it computes with them, its own settings say.

    Position embeddings are interpolated (bicubic over an image's grid, linear over a text's length) and the kernels of
    the first layer summed or repeated over channels where sizes differ. Tensors are read one by one, and of sharded
    weights a rank takes its shards; needs no other rank.

    Args:
        allowed: patterns of tensors that may be missing from the folder, or unexpected in it.
    Raises:
        UserError: no such folder, another tokenizer, or tensors that are missing, unexpected or cannot be fitted.
    """
    refuse_other_tokenizer(encoder, folder)
    stored, loading = find_tensors(type(encoder.model), folder)
    refuse_loading_gaps(loading, folder, allowed)
    state = encoder.model.state_dict()
    not_given = set(loading["missing_keys"])
    lacking, vain = sorted(state.keys() - stored.keys() - not_given), sorted(stored.keys() - state.keys())
    gaps = dict.fromkeys(lacking, "missing") | dict.fromkeys(vain, "unexpected")
    refuse_gaps(
        f"{folder}: the encoder's settings ask for other weights; leave those settings out",
        gaps,
        allowed=allowed,
    )
    report = LoadingReport(
        str(folder),
        missing=sorted({*not_given, *lacking}),
        unused=sorted({*loading["unexpected_keys"], *vain}),
    )
    grids = find_grids(encoder, folder)
    for name in (name for name in state if name in stored):
        tensor, how = fit_tensor(name, stored[name].read(), state[name].shape, folder, grids)
        report.loaded += how is None
        if how:
            report.fitted.append(f"{name} {stored[name].shape} → {tuple(state[name].shape)}, {how}")
        copy_shard(state[name], tensor)
    return report


def find_grids(encoder: Encoder, folder: Path) -> tuple[Grid, Grid] | None:
    """The (rows, columns) of the positions that a folder's images have, and those that the encoder's have, if any."""
    wanted = getattr(encoder, "position_grid", None)
    if wanted is None:
        return None
    own = type(encoder).HFConfig.from_dict(read_model_config(folder))
    rows, columns = rows_and_columns(own.image_size)
    height, width = rows_and_columns(own.patch_size)
    return (rows // height, columns // width), wanted


def refuse_loading_gaps(loading: dict[str, Any], folder: Path, allowed: tuple[str, ...] = ()) -> None:
    """Raise a `UserError` for what `from_pretrained` found missing or misshapen, or unexpected and no head's."""
    gaps = dict.fromkeys(sorted(loading["missing_keys"]), "missing")
    gaps |= {name: "unexpected" for name in sorted(loading["unexpected_keys"]) if not is_dispensable(name)}
    refuse_gaps(f"{folder}: model.safetensors does not fit config.json; release it again", gaps, allowed)


def is_dispensable(name: str) -> bool:
    """Whether an encoder does without a folder's tensor of that name: a head's, or one that follows from settings."""
    return any(f".{head}" in f".{name}" for head in HEADS) or name.endswith(BUFFERS)


def refuse_other_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Token numbers mean nothing to an encoder that learned them from another tokenizer."""
    own = getattr(encoder, "tokenizer_folder", None)
    ours, theirs = fingerprint_of(own), fingerprint_of(folder)
    if ours and theirs and ours != theirs:
        raise UserError(
            f"encoder.from_pretrained={folder}: learned with another tokenizer than the data's ({own}); tokenize the "
            f"data with `python -m data_tools tokenize --tokenizer {folder}`"
        )
