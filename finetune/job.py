"""A fine-tuning job, from its configuration to its table, plot and saved classifier."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import yaml

from data_tools.errors import UserError
from finetune.config import Config
from finetune.protocol import run_protocol
from finetune.results import table, write_results
from pretrain.config.schema import plain
from pretrain.run.folder import write_text


def run(config: Config, report: Callable[[str], Any]) -> list[str]:
    """Do all that `config` says, on every rank together; return the closing lines for the user."""
    is_main_process = os.environ.get("RANK", "0") == "0"
    folder = config.folder
    if is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", yaml.safe_dump(as_dict(config), sort_keys=False))
        except OSError as error:
            raise UserError(f"out={folder}: cannot be written ({error.strerror}); choose another") from None
    result, task = run_protocol(config, report)
    if not is_main_process:
        return []
    lines = ["", table(result), ""]
    if task is not None:
        from finetune.save import save_classifier

        lines.append(save_classifier(task, folder / "classifier", result))
    written = write_results(result, folder)
    return [*lines, *(f"written: {path}" for path in written)]


def as_dict(config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: plain(value) for key, value in asdict(config).items()}
