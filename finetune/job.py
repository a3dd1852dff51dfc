"""A fine-tuning job, from its configuration to its table, plot and saved classifier."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import yaml

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from finetune.config import Config, build_config
from finetune.protocol import run_protocol
from finetune.results import RESULTS, table, write_results
from pretrain.config.rate_rule import is_rule
from pretrain.config.show import flatten, to_public_dict
from pretrain.run.folder import RunFolder, load_run_config


def run(config: Config, report: Callable[[str], Any]) -> list[str]:
    """Do all that `config` says, on every rank together; return the closing lines for the user.

    Raises:
        UserError: settings or data are wrong, or the folder is another job's; its files are as they were then.
    """
    is_main_process = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(config.folder)
    try:
        if is_main_process:
            folder.lock("out")
            folder.refuse_other_kind("task", "out")
            refuse_other_results(config)
            write_atomically(
                folder.path / "config.yaml", yaml.safe_dump(to_public_dict(config), sort_keys=False)
            )
        result, task = run_protocol(config, report)
        if not is_main_process:
            return []
        lines = ["", table(result), ""]
        if task is not None:
            from finetune.save import save_classifier

            lines.append(save_classifier(task, folder.path / "classifier", result))
        written = write_results(result, folder.path)
        return [*lines, *(f"written: {path}" for path in written)]
    finally:
        folder.close()


def refuse_other_results(config: Config) -> None:
    """Raise a `UserError` where the folder holds results of other settings, which this job would overwrite.

    Settings that are newer than those results had their defaults in them.
    """
    saved = config.folder / "config.yaml"
    if not saved.exists() or not (config.folder / RESULTS).exists():
        return
    before = load_run_config(config.folder)
    with suppress(UserError):  # it has settings that are there no more: all differences count
        before = to_public_dict(build_config(before))
    before, now = flatten(before), flatten(to_public_dict(config))
    for key in sorted(before.keys() | now.keys()):
        free = key in ("name", "out") or key.startswith("data.storage.") or is_rule(key)
        if not free and before.get(key) != now.get(key):
            raise UserError(
                f"{config.folder}: holds results of {key}={before.get(key)!r}, not {now.get(key)!r}; choose another "
                "out, or delete the folder"
            )
