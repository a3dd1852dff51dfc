"""`metrics.jsonl`: the record of a run, one JSON object a line, appended whole. Everything else is derived from it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from data_tools.storage.atomic import full_disk_explained

FILE_NAME = "metrics.jsonl"
# JSON has no such numbers; they are written as these strings and come back as floats.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsFile:
    """Appends lines to a run's metrics.

    Each line is one `write` to a file opened for appending: after SIGKILL the lines written so far are all there. Only
    a crash of the machine or a full disk can leave half a line; it is cut off when the file is opened again.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = path = run_dir / FILE_NAME
        run_dir.mkdir(parents=True, exist_ok=True)
        cut_half_line(path)
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)  # less the umask

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; numbers may be Python's, NumPy's or one-element tensors."""
        text = json.dumps(to_json(line), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate as JSON writes it
        with full_disk_explained(self.path, len(data)):
            while data:  # a write may be short when the disk is nearly full or a signal arrives
                data = data[os.write(self.descriptor, data) :]

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def cut_half_line(path: Path) -> None:
    """Remove what follows the last newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run, ordered by step; of several for one (kind, step) only the last, which a resume wrote.

    Lines that are not whole are left out, so this may be called while the run is writing.
    """
    path = run_dir / FILE_NAME
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for raw in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            line = json.loads(raw)
            key = (str(line["kind"]), int(line["step"]))
        except (ValueError, KeyError, TypeError):
            continue
        latest.pop(key, None)  # the last one also stands last
        latest[key] = {name: from_json(value) for name, value in line.items()}
    return sorted(latest.values(), key=lambda line: line["step"])


def told_from(run_dir: Path, step: int) -> set[tuple[str, int]]:
    """(kind, step) of the lines from `step` on, which a run that goes on from there would tell again."""
    return {(line["kind"], line["step"]) for line in read_metrics(run_dir) if line["step"] >= step}


def to_json(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "item"):  # NumPy scalar, tensor
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return next(name for name, number in NON_FINITE.items() if repr(number) == repr(value))
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def from_json(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
