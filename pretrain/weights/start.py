"""Where a new run's weights come from: its seed, a `transformers` folder, or another run. A resumed run needs none."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.objects import is_remote
from pretrain.checkpoint.folder import IDENTITY, complete, find_fault, newest_valid, step_of
from pretrain.checkpoint.store import download_newest
from pretrain.checkpoint.weights import read_weights, saved_shapes
from pretrain.config.schema import plain
from pretrain.config.sections import Config
from pretrain.config.show import flatten
from pretrain.encoders.base import Encoder
from pretrain.encoders.text.tokenizer import find_tokenizer, fingerprint_of
from pretrain.objectives.base import Objective
from pretrain.weights.from_transformers import load_pretrained
from pretrain.weights.gaps import LoadingReport, leave_out_allowed, refuse_gaps

OF_TRAINING = ("from_pretrained", "max_length", "pooling", "initializer_", "drop")
"""Words in the names of an encoder's settings that do not change what weights mean."""
FETCHED = "init_from"
"""Where a run keeps the checkpoint that it has started from, if that came from a URL."""


def load_starting_weights(config: Config, objective: Objective) -> list[LoadingReport]:
    """Load what `encoder.from_pretrained` and `init_from` name.

    Called before an engine spreads the roles, on every rank.

    Raises:
        UserError: nothing to load there, or it does not fit the roles.
    """
    reports = []
    if folder := getattr(config.encoder, "from_pretrained", None):
        for encoder in dict.fromkeys((objective.encoder, objective.product_encoder)):
            reports.append(load_pretrained(encoder, Path(folder), config.allow_keys))
    if config.init_from and config.init_with == "weights":  # else the engine takes all of it
        reports.append(load_roles(starting_checkpoint(config), objective, config.allow_keys))
    return reports


def starting_checkpoint(config: Config) -> Path:
    """The valid checkpoint that `init_from` names; where that is a URL, `fetch_starting_weights` has copied it here.

    Raises:
        UserError: there is none.
    """
    named = checkpoint_path(config.init_from or "")
    return find_checkpoint(config.folder / FETCHED if is_remote(named) else Path(named))


def checkpoint_path(init_from: str) -> str:
    """`RUN@STEP`, a folder or a URL, as the path of that checkpoint; anything else as it is."""
    run, at, step = init_from.rpartition("@")
    if not at or not step.isdecimal():
        return init_from
    name = f"step_{int(step):08d}"
    return f"{run}/{name}" if is_remote(run) else f"{run}/checkpoints/{name}"


def fetch_starting_weights(config: Config) -> None:
    """Copy what `init_from` names into the run's folder, where it is a URL. Called on rank 0.

    Raises:
        UserError: it has no valid checkpoint, or is out of reach.
    """
    if config.init_from and is_remote(config.init_from):
        download_newest(checkpoint_path(config.init_from), config.folder / FETCHED / "checkpoints")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: one itself, or the newest valid one of a run folder."""
    if (path / "checkpoints").is_dir():
        checkpoint, broken = newest_valid(path / "checkpoints")
        if checkpoint is None:
            raise UserError(f"init_from={path}: has no valid checkpoint ({'; '.join(broken) or 'none yet'})")
        return checkpoint
    if not path.is_dir():
        others = ", ".join(str(step_of(other)) for other in complete(path.parent))
        raise UserError(
            f"init_from={path}: no such folder; "
            + (f"there are steps {others}" if others else "give a run folder or one of its checkpoints")
        )
    fault = find_fault(path)
    if fault:
        raise UserError(f"init_from={path}: neither a run folder nor a valid checkpoint ({fault})")
    return path


def load_roles(checkpoint: Path, objective: Objective, allowed: tuple[str, ...] = ()) -> LoadingReport:
    """Take the weights of all roles, averaged where they were, from a checkpoint of any engine and world size.

    Args:
        allowed: patterns of tensors (`encoder.model.*`, `decoder.*`) that either side may lack.
    """
    saved = saved_shapes(checkpoint)
    own = {role: module.state_dict() for role, module in objective.roles.items()}
    wanted = {f"{role}.{name}": tensor for role, state in own.items() for name, tensor in state.items()}
    refuse_role_gaps(checkpoint, saved, {name: tuple(t.shape) for name, t in wanted.items()}, allowed)
    both = {
        role: {name: tensor for name, tensor in state.items() if f"{role}.{name}" in saved}
        for role, state in own.items()
    }
    read_weights(checkpoint, both)
    for role, module in objective.roles.items():
        module.load_state_dict({**own[role], **both[role]})
    loaded = sum(len(state) for state in both.values())
    missing, unused = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    differing = find_differences(checkpoint, objective.encoder)
    return LoadingReport(str(checkpoint), loaded, missing=missing, unused=unused, differing=differing)


def find_differences(checkpoint: Path, encoder: Encoder) -> list[str]:
    """What of the encoder that a checkpoint was trained with no shape tells, and is another here: a line each."""
    path = checkpoint / IDENTITY
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    there = flatten(saved.get("config", {}).get("encoder", {}))
    here = flatten(plain(asdict(encoder.config)))
    lines = [
        f"encoder.{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there and there.get(key) != here.get(key) and not any(word in key for word in OF_TRAINING)
    ]
    sources = saved.get("config", {}).get("data", {}).get("path", "")
    place = next(iter(sources), "") if isinstance(sources, dict) else sources
    with suppress(UserError, OSError):  # the data are not there any more
        theirs = None if is_remote(place) else fingerprint_of(find_tokenizer(open_dataset(place)))
        ours = fingerprint_of(getattr(encoder, "tokenizer_folder", None))
        if ours and theirs and ours != theirs:
            lines.append(f"tokenizer: that of {place} there, another one here")
    return lines


def refuse_role_gaps(
    checkpoint: Path, saved: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    """Raise a `UserError` naming every `<role>.<name>` that is missing, unexpected or of another shape."""
    gaps = dict.fromkeys(sorted(wanted.keys() - saved.keys()), "missing")
    gaps |= dict.fromkeys(sorted(saved.keys() - wanted.keys()), "unexpected")
    reshaped = {
        name: f"of shape {saved[name]}, not {wanted[name]}"
        for name in sorted(saved.keys() & wanted.keys())
        if saved[name] != wanted[name]
    }
    faults = leave_out_allowed(gaps, allowed) | reshaped
    example = f"allow_keys=['{next(iter(faults), 'decoder').split('.')[0]}.*']"
    place = f"init_from ({checkpoint}): does not fit; name what may differ in allow_keys, e.g. {example}"
    refuse_gaps(place, faults)
