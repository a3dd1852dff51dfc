"""What is asked of a comparison."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.storage.objects import redacted

UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Options:
    """As the command line has them."""

    data: str
    out: Path
    label: str = "label"
    objectives: tuple[str, ...] = ()
    """Names, or `name=recipe.yaml`; none: every objective that has a demo recipe for such data."""
    budget: float = 1200.0
    """Seconds for everything."""
    settings: tuple[str, ...] = ()
    """`name:key=value`: of one candidate, of `all`, or of `finetune`."""
    encoder: Path | None = None
    shots: int = 10
    """Labels a class."""
    draws: int = 5
    """Of the labels, for fine-tuning."""
    group: str | None = None
    group_key: str | None = None
    ranks: int = 1
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What makes it another comparison when it changes, JSON-able, without passwords in URLs."""
        values = {**asdict(self), "data": redacted(self.data)}
        values["encoder"] = str(self.encoder) if self.encoder else None
        del values["out"]
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def check_options(options: Options) -> None:
    """Raise a `UserError` for what cannot be meant."""
    for flag, value, least in (("--labels", options.shots, 1), ("--draws", options.draws, 2),
                               ("--nproc", options.ranks, 1)):  # fmt: skip
        if value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")
    if options.encoder is not None and not (options.encoder / "config.json").is_file():
        raise UserError(
            f"--encoder {options.encoder}: holds no config.json; give a folder of transformers, or a release "
            "(python -m pretrain release RUN)"
        )
    if options.group and options.group_key:
        raise UserError("--group and --group-key: name one of them")


def parse_duration(text: str) -> float:
    """`90s`, `20min`, `1.5h` → seconds; raises a `UserError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"--budget {text}: write a number and a unit: 90s, 20min or 2h")
    return float(found[1]) * UNITS[found[2]]


def describe_duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `12 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
