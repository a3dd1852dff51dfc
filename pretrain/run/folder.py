"""The folder of a run: who may write to it, and what identifies the run."""

from __future__ import annotations

import fcntl
import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from data_tools.errors import UserError
from data_tools.schema import read_yaml
from data_tools.storage.atomic import write_atomically
from pretrain.config.load import build_config
from pretrain.config.rate_rule import is_rule
from pretrain.config.sections import Config
from pretrain.config.show import flatten, to_dict, to_public_dict

# What may change between two starts of the same run without making it another run.
FREE_SECTIONS = (
    "name", "run_dir", "engine", "distributed", "ddp", "fsdp", "deepspeed", "checkpoint", "tracking", "probe",
    "representation", "validation", "hooks",
)  # fmt: skip
FREE_KEYS = (
    "init_from",
    "init_with",
    "allow_keys",
    "encoder.from_pretrained",
    "data.workers",
    "data.worker_kind",
    "data.path",
    "data.temperature",
    "data.max_repeats",
    "data.validation",
    "data.max_damage_rate",
    "data.storage",
    "train.micro_batch_size",
    "train.max_skipped_steps",
    "train.spike_sigma",
    "train.hang_timeout",
    "train.gc_every",
    "train.deterministic",
    "train.compile",
    "train.activation_checkpointing",
    "train.attention",
)
CHANGEABLE = (
    "train.steps", "train.epochs", "train.global_batch_size", "train.batch_size_warmup", "train.clip_grad_norm",
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.weight_decay_end",
    "optimizer.momentum", "optimizer.trust_coefficient", "optimizer_overrides", "schedule",
)  # fmt: skip
"""What may change on purpose: weights, optimizer states and the place in the data mean the same under any of them."""
FIXED = ("name", "rules", "layer_decay")
"""Settings within `optimizer_overrides` that may not: they say which states there are, and for whom."""
OTHER_SECTIONS = {"objective": "a pretraining run", "task": "a fine-tuning job"}
"""By the section of `config.yaml` that only they have, whose folder it is."""
OTHER_FILES = {"manifest.json": "a data set", "config.json": "a released model"}
"""By their files, folders that belong to no job."""
Changes = dict[str, list[Any]]
"""By dotted key, the value before and the value now."""


def is_free(key: str) -> bool:
    """Whether a dotted key may change; a free key may be a mapping, whose own keys are free with it."""
    return key.split(".", maxsplit=1)[0] in FREE_SECTIONS or is_named(key, FREE_KEYS)


def is_changeable(key: str) -> bool:
    """Whether a dotted key, or all keys of a section, may change where that is asked for."""
    fixed = key.startswith("optimizer_overrides.") and key.rsplit(".", maxsplit=1)[-1] in FIXED
    return is_named(key, CHANGEABLE) and not fixed


def is_named(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names`, or lies under one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


class RunFolder:
    """`runs/<name>`, locked for one job at a time by rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file: IO[str] | None = None
        self.changes: Changes = {}
        """What was changed on purpose when it was opened."""

    def open(self, config: Config, allowed: tuple[str, ...] = ()) -> str:
        """Create or reopen the folder, write `config.yaml`, and return the run's id.

        Args:
            allowed: settings and sections that may be others than before.
        Raises:
            UserError: another job writes here, the folder cannot be written, or it holds a different run.
        """
        self.lock("run_dir")
        self.refuse_other_kind("objective", "run_dir")
        self.changes = self.refuse_other_run(config, allowed)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(to_public_dict(config), sort_keys=False))
        return self.run_id()

    def lock(self, setting: str) -> None:
        """Create the folder where it is not there, and let no other job work in it until `close`.

        Args:
            setting: which one chooses the folder, for messages.
        Raises:
            UserError: another job works here, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock_file = (self.path / "lock").open("a")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); choose another {setting}"
            ) from None
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.path}: another job is running in this folder; choose another {setting}"
            ) from None

    def refuse_other_kind(self, section: str, setting: str) -> None:
        """Refuse a folder that is something else's, whose files would be overwritten.

        Args:
            section: the one that this kind of job has in `config.yaml`.
            setting: which one chooses the folder, for messages.
        Raises:
            UserError: the folder holds a job of another kind, a data set, or a model.
        """
        saved = self.path / "config.yaml"
        values = load_run_config(self.path) if saved.exists() else {}
        found = [kind for other, kind in OTHER_SECTIONS.items() if other != section and other in values]
        found += [kind for name, kind in OTHER_FILES.items() if (self.path / name).exists()]
        if found:
            raise UserError(f"{self.path}: holds {found[0]}; choose another {setting}")

    def refuse_other_run(self, config: Config, allowed: tuple[str, ...]) -> Changes:
        saved = self.path / "config.yaml"
        if saved.exists() and (self.path / "checkpoints").is_dir():
            before = load_run_config(self.path)
            remedy = "choose another run_dir (or name), or delete the folder to start over"
            return refuse_other_config(str(self.path), before, to_dict(config), remedy, allowed)
        return {}

    def run_id(self) -> str:
        path = self.path / "run.json"
        if not path.exists():
            write_atomically(path, json.dumps({"id": secrets.token_hex(4)}))
        return str(json.loads(path.read_text())["id"])

    def take_id(self, run_id: str) -> str:
        """Be the folder of that run again."""
        write_atomically(self.path / "run.json", json.dumps({"id": run_id}))
        return run_id

    def close(self) -> None:
        if self.lock_file:
            self.lock_file.close()


def refuse_other_config(
    place: str, before: dict[str, Any], now: dict[str, Any], remedy: str, allowed: tuple[str, ...] = ()
) -> Changes:
    """Raise a `UserError` where the configuration that a place holds is that of a different run.

    Returns:
        What differs all the same, since it is `allowed` to: dotted keys, or sections.
    """
    found = differences(before, now)
    refused = {k: v for k, v in found.items() if not (is_changeable(k) and is_named(k, allowed))}
    if not refused:
        return found
    first = next(iter(refused))
    if all(map(is_changeable, refused)):
        remedy = (
            f"to change it on purpose, add --allow-changes {','.join([*allowed, *refused])}; else {remedy}"
        )
    raise UserError(
        f"{place}: holds a run with {first}={refused[first][0]!r}, not {refused[first][1]!r}; {remedy}"
    )


def differences(before: dict[str, Any], now: dict[str, Any]) -> Changes:
    """What makes one configuration another run than the other; settings that are newer had their defaults before.

    A rule for the learning rate makes none: the rate that it comes to does.
    """
    with suppress(UserError):  # it has settings that are there no more: all differences count
        before = to_dict(build_config(before))
    before, now = flatten(before), flatten(now)
    return {
        key: [before.get(key), now.get(key)]
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not is_free(key) and not is_rule(key)
    }


def load_run_config(run: Path) -> dict[str, Any]:
    """The resolved configuration that a run folder holds.

    Raises:
        UserError: not a run folder.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{run}: not a run folder (no config.yaml); give the folder that a run wrote, e.g. runs/mae_digits"
        )
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, it holds no settings; fetch it again from a copy of the run")
    return values
