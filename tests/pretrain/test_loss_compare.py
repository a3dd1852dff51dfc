"""Two runs, or two states of the code, learn the same bit for bit; or the first value that differs is named."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.config.load import load_config
from pretrain.run.loss_compare import ALWAYS, compare_runs, find_code
from pretrain.run.run import run
from tests.processes import QUIET
from tests.tiny_run import SMALL

SETTINGS = [*SMALL, "train.global_batch_size=8", "tracking.log_every=1",
            *QUIET, "tracking.progress=false", "checkpoint.every=100"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("a", ["train.steps=4"]), ("again", ["train.steps=4"]), ("longer", ["train.steps=6"]),
                       ("seed", ["train.steps=4", "seed=1"])):  # fmt: skip
        constant = ["schedule.name=constant", "schedule.warmup_ratio=null"]
        run(load_config("mae_digits", [*SETTINGS, *constant, *more, f"run_dir={folder / name}"])[0])
    return folder


def test_the_same_run_twice_is_equal(runs, capsys):
    assert main(["loss-compare", str(runs / "a"), str(runs / "again")]) == 0
    assert capsys.readouterr().out == "equal: 4 lines up to step 4, bit for bit\n"


def test_a_longer_run_is_equal_as_far_as_both_go(runs):
    found = compare_runs(runs / "a", runs / "longer")
    assert (found.equal, found.compared, found.last_step) == (True, 4, 4)
    told = found.describe("a", "longer")
    assert "settings that differ: train.steps: 4 and 6" in told
    assert f"2 logged steps are in {runs / 'longer'} only, up to step 6" in told


def test_another_seed_differs_from_the_first_step_on(runs, capsys):
    assert main(["loss-compare", str(runs / "a"), str(runs / "seed")]) == 1
    told = capsys.readouterr().out
    assert re.match(r"differ first at step 1: loss is [\d.]+ in .* and [\d.]+ in .* \([\d.]+ apart, ", told)
    assert "4 of 4 lines differ" in told
    assert "settings that differ: seed: 0 and 1" in told


def test_one_bit_is_a_difference_and_the_clock_is_none(runs, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(runs / "a", changed)
    metrics = changed / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"step": 3' in line)
    lines[at] = re.sub(
        r'("grad_norm": )([\d.]+)', lambda m: f"{m[1]}{float(m[2]) * (1 + 1e-15)!r}", lines[at]
    )
    lines = [re.sub(r'("samples_per_second": )([\d.]+)', r"\g<1>1.0", line) for line in lines]
    metrics.write_text("\n".join(lines) + "\n")
    found = compare_runs(runs / "a", changed)
    assert (found.first.step, found.first.name, found.different) == (3, "grad_norm", 1)


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        compare_runs(runs / "a", tmp_path)
    shutil.copy(runs / "a" / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="have logged no step in common"):
        compare_runs(runs / "a", tmp_path)
    with pytest.raises(UserError, match="neither a folder with this project's code nor a git revision"):
        find_code("no-such-revision", tmp_path / "code")


CODE = """import json, sys
from pathlib import Path
settings = dict(s.split("=", 1) for s in sys.argv[2:])
run = Path(settings["run_dir"])
run.mkdir()
lines = [{"kind": "train", "step": i, "loss": LOSS / i} for i in range(1, int(settings["train.steps"]) + 1)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


def test_two_states_of_the_code_are_run_and_compared(tmp_path, capsys, monkeypatch):
    """The states are a program that logs as a run does: the real one takes ten seconds to start."""
    code = tmp_path / "code"
    (code / "pretrain").mkdir(parents=True)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        subprocess.run(["git", "-C", str(code), *identity, *arguments], check=True, capture_output=True)

    git("init")
    for change in ("LOSS = 1.0", "LOSS = 1.0  # tidier", "LOSS = 1.5"):
        (code / "pretrain" / "__main__.py").write_text(f"{change}\n{CODE}")
        git("add", ".")
        git("commit", "-m", change)
    monkeypatch.setattr(
        "pretrain.run.loss_compare.__file__", str(code / "pretrain" / "run" / "loss_compare.py")
    )
    steps = ["--recipe", "mae_digits", "--steps", "4"]
    assert main(["loss-compare", "HEAD~2", "HEAD~1", *steps]) == 0
    assert capsys.readouterr().out == "equal: 4 lines up to step 4, bit for bit\n"
    assert main(["loss-compare", "HEAD~1", str(code), *steps, "train.steps=3"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("differ first at step 1: loss is 1.0 in HEAD~1 and 1.5 in "), told
    assert "(0.5 apart, 0.5 of it); 3 of 3 lines differ" in told
    assert main(["loss-compare", "HEAD", "nowhere", *steps]) == 2
    (code / "pretrain" / "__main__.py").write_text("raise SystemExit('error: no room')")
    assert main(["loss-compare", "HEAD", str(code), *steps]) == 2
    assert "its run failed with exit status 1: error: no room" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["mae_digits", "mae_images", "gan_digits", "mlm_sotu"])
def test_settings_of_a_comparison_are_those_that_recipes_take(recipe):
    assert load_config(recipe, [*ALWAYS, "train.steps=20"])[0].train.steps == 20


@pytest.mark.parametrize("extra", [["train.steps=3"], ["--steps", "3"]])
def test_settings_without_a_recipe_are_refused(extra, capfd):
    """They would be ignored: two finished runs are compared as they are."""
    assert main(["loss-compare", "a", "b", *extra]) == 2
    assert "add --recipe, or leave them out" in capfd.readouterr().err
