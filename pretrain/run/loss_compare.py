"""`python -m pretrain loss-compare A B`: whether two runs, or two states of the code, learn the same, bit for bit."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from pretrain.config.show import flatten
from pretrain.metering.meter import CLOCKED
from pretrain.report.run_summary import is_number
from pretrain.run.folder import load_run_config
from pretrain.tracking.metrics import read_metrics

COMPARED = ("train", "validation", "probe")
"""Kinds of lines that say what was learned."""
ALWAYS = ("tracking.log_every=1", "tracking.picture_every=0", "tracking.wandb.mode=disabled", "tracking.progress=false",
          "probe.every=0", "train.epochs=null")  # fmt: skip
"""How both states of the code train, unless the command line says otherwise."""
Lines = dict[tuple[int, str], dict[str, float]]
"""By (step, kind), the numbers of a line that do not depend on the clock."""


@dataclass(frozen=True)
class Difference:
    """The first value that is not the same."""

    step: int
    kind: str
    name: str
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common, and where they part."""

    compared: int
    """Lines of both."""
    different: int
    """Of these, the ones in which some value differs."""
    last_step: int
    """The last one that both have logged."""
    first: Difference | None
    remarks: list[str]

    @property
    def equal(self) -> bool:
        return self.first is None

    def describe(self, a: str, b: str) -> str:
        """The finding for a terminal."""
        if self.first is None:
            found = f"equal: {self.compared} lines up to step {self.last_step}, bit for bit"
        else:
            d = self.first
            name = d.name if d.kind == "train" else f"{d.kind} {d.name}"
            apart = abs(d.a - d.b)
            share = f", {apart / abs(d.a):.2g} of it" if d.a else ""
            found = (
                f"differ first at step {d.step}: {name} is {d.a!r} in {a} and {d.b!r} in {b} "
                f"({apart:.6g} apart{share}); {self.different} of {self.compared} lines differ"
            )
        return "\n".join([found, *self.remarks])


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare what two run folders' metrics say of the same steps.

    Raises:
        UserError: one is no run folder, or they have logged no step in common.
    """
    settings = [flatten(load_run_config(run)) for run in (a, b)]
    changed = [
        f"{key}: {settings[0].get(key)!r} and {settings[1].get(key)!r}"
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key) != settings[1].get(key) and key not in ("name", "run_dir")
    ]
    remarks = [f"settings that differ: {'; '.join(changed)}"] if changed else []
    return compare_lines(read_lines(a), read_lines(b), (str(a), str(b)), remarks)


def read_lines(run: Path) -> Lines:
    return {
        (line["step"], line["kind"]): {
            name: value
            for name, value in line.items()
            if is_number(value) and name not in CLOCKED and name not in ("step", "time")
        }
        for line in read_metrics(run)
        if line["kind"] in COMPARED
    }


def compare_lines(a: Lines, b: Lines, names: tuple[str, str], remarks: list[str]) -> Comparison:
    common = sorted(a.keys() & b.keys(), key=lambda key: (key[0], COMPARED.index(key[1])))
    if not any(kind == "train" for _, kind in common):
        raise UserError(
            f"{names[0]} and {names[1]}: have logged no step in common; let both run with the same tracking.log_every"
        )
    differences = [
        Difference(step, kind, name, value, b[step, kind][name])
        for step, kind in common
        for name, value in a[step, kind].items()
        if name in b[step, kind] and not same(value, b[step, kind][name])
    ]
    remarks = list(remarks)
    for lines, other, name in ((a, b, names[0]), (b, a, names[1])):
        more = {step for step, kind in lines.keys() - other.keys() if kind == "train"}
        if more:
            remarks.append(f"{len(more)} logged steps are in {name} only, up to step {max(more)}")
        values = {value for key in common for value in lines[key].keys() - other[key].keys()}
        if values:
            remarks.append(f"values in {name} only: {', '.join(sorted(values))}")
    return Comparison(
        compared=len(common),
        different=len({(d.step, d.kind) for d in differences}),
        last_step=common[-1][0],
        first=differences[0] if differences else None,
        remarks=remarks,
    )


def same(a: float, b: float) -> bool:
    """Equal, or both no number."""
    return a == b or (a != a and b != b)  # noqa: PLR0124


def compare_code(a: str, b: str, recipe: str, steps: int, overrides: list[str]) -> Comparison:
    """Train a recipe for some steps by two states of this project's code, and compare what they log.

    Args:
        a: a git revision of the repository that this code is in, or a folder that holds the code; so `b`.
    Raises:
        UserError: no such revision, or a run that failed.
    """
    with tempfile.TemporaryDirectory(prefix="loss-compare-") as folder:
        lines = []
        for number, state in enumerate((a, b)):
            run = Path(folder) / f"run_{number}"
            code = find_code(state, Path(folder) / f"code_{number}")
            settings = [*ALWAYS, f"train.steps={steps}", *overrides, f"run_dir={run}"]
            train(code, state, [recipe, *settings])
            lines.append(read_lines(run))
        return compare_lines(lines[0], lines[1], (a, b), [])


def find_code(state: str, checkout: Path) -> Path:
    """The folder with a state of the code; a revision is written into `checkout`, and the repository left as it is."""
    if (Path(state) / "pretrain" / "__main__.py").is_file():
        return Path(state).resolve()
    repository = Path(__file__).parents[2]
    archive = subprocess.run(
        ["git", "-C", str(repository), "archive", "--format=tar", state],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        reason = " ".join(archive.stderr.decode(errors="replace").split())
        raise UserError(
            f"{state}: neither a folder with this project's code nor a git revision of {repository} ({reason})"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(checkout, filter="data")
    return checkout


def train(code: Path, state: str, arguments: list[str]) -> None:
    """Run `python -m pretrain` of the code in a folder, in a process of its own; paths are the caller's."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(code)}
    # -P: the folder that we are in would come before PYTHONPATH.
    command = [sys.executable, "-P", "-m", "pretrain", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason told").splitlines()[-1]
        raise UserError(f"{state}: its run failed with exit status {done.returncode}: {reason}")
