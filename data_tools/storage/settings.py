"""How data on other machines are reached, as a recipe's `data.storage` and the commands' `--storage` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import PositiveFloat, PositiveInt

from data_tools.errors import UserError
from data_tools.schema import build_section, parse_override, put, read_yaml
from data_tools.storage.options import StorageOptions
from data_tools.storage.retry import PATIENT, Retry
from data_tools.storage.segments import CACHE_BYTES, PREFETCH_BYTES, FetchOptions


@dataclass(frozen=True)
class StorageConfig:
    """How data that do not lie on this machine are reached, and what is kept of them here."""

    options: StorageOptions = StorageOptions()
    cache_folder: str | None = None
    """Where this node keeps what it has fetched. Default: MASQUERADE_CACHE, else in a job of a cluster the node's own
    disk (SLURM_TMPDIR, TMPDIR, /tmp), elsewhere ~/.cache/masquerade."""
    cache_bytes: PositiveInt = CACHE_BYTES
    """Of each data set, on each node: allow twice what the lanes hold at once."""
    prefetch_bytes: PositiveInt = PREFETCH_BYTES
    """On their way to a process at once, ahead of their use."""
    patience: PositiveFloat = PATIENT.patience
    """Seconds that an outage of the storage is waited for."""

    @property
    def fetching(self) -> FetchOptions:
        """As `open_dataset` takes it."""
        return FetchOptions(
            cache_bytes=self.cache_bytes,
            prefetch_bytes=self.prefetch_bytes,
            cache_folder=Path(self.cache_folder) if self.cache_folder else None,
            retry=Retry(patience=self.patience, storage=self.options),
        )


def read_settings(words: Sequence[str]) -> StorageConfig:
    """What ``--storage`` says, word by word: ``options.profile=me``, or a YAML file; a later word wins.

    Raises:
        UserError: a file that is none, an unknown key (with the nearest right one), a value of the wrong type.
    """
    values: dict[str, Any] = {}
    try:
        for word in words:
            if "=" in word:
                values = put(values, *parse_override(word))
            else:
                values |= read_file(Path(word).expanduser())
        config: StorageConfig = build_section(StorageConfig, values, "")
    except UserError as error:
        raise UserError(f"--storage {error}") from None
    return config


def read_file(path: Path) -> dict[str, Any]:
    """The keys of ``data.storage`` that stand in a YAML file: by themselves, or where a recipe has them."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(
            f"{path}: no such file ({error.strerror}); give KEY=VALUE, or a YAML file of such keys"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    for section in ("data", "storage"):  # a recipe
        if isinstance(values, dict) and section in values:
            values = values[section] or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no mapping of keys, such as cache_bytes: 1000000000")
    return values
