"""data.temperature and data.max_repeats: told at the start, kept in the state, the same when a run goes on."""

from __future__ import annotations

import json
import shutil

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import build_stream, open_sources
from pretrain.run.run import run
from tests.processes import QUIET, losses
from tests.tiny_run import SMALL

BOTH = "data.path={sample:digits: 1, sample:digits_test: 1}"


def config(folder, *overrides):
    quiet = (
        "train.global_batch_size=16",
        "checkpoint.every=2",
        "tracking.log_every=1",
        "schedule.warmup_ratio=0",
    )
    return load_config("mae_digits", [*SMALL, *QUIET, *quiet, f"run_dir={folder}", BOTH, *overrides])[0]


def test_temperature_weighs_by_size(tmp_path):
    settings = config(tmp_path, "train.steps=4", "data.temperature=1")
    stream = build_stream(settings, open_sources(settings.data))
    assert stream.history[0][1] == pytest.approx({"sample:digits": 12 / 14, "sample:digits_test": 2 / 14})


def test_repeats_are_capped_by_the_length_of_the_run(tmp_path):
    settings = config(tmp_path, "train.steps=null", "train.epochs=1", "data.max_repeats=1.5")
    stream = build_stream(settings, open_sources(settings.data))
    assert stream.history[0][1]["sample:digits_test"] == pytest.approx(3000 / 14_000)


def test_a_run_goes_on_with_its_plan_and_a_longer_one_plans_the_rest(tmp_path, capsys):
    settings = ["data.temperature=0.5", "train.steps=4"]
    run(config(tmp_path, *settings))
    assert "data.path: sample:digits: 75.00% of 64 samples, each 0.004 times" in capsys.readouterr().out
    whole = losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")  # as if it had been stopped before
    run(config(tmp_path, *settings))
    assert losses(tmp_path) == whole
    state = json.loads((tmp_path / "checkpoints" / "step_00000004" / "progress.json").read_text())["stream"]
    assert len(state["mixing"]["history"]) == 1 and state["mixing"]["plan"]["positions"] == 64
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    run(config(tmp_path, "data.max_repeats=0.01", "train.steps=4"))
    state = json.loads((tmp_path / "checkpoints" / "step_00000004" / "progress.json").read_text())["stream"]
    assert [start for start, *_ in state["mixing"]["history"]] == [0, 32]


@pytest.mark.parametrize("setting", ["data.temperature=0.5", "data.max_repeats=4"])
def test_one_data_set_has_no_shares_to_plan(setting):
    with pytest.raises(UserError, match=r"is of several data sets, data.path names one"):
        load_config("mae_digits", [setting])
