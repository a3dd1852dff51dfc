"""Pretraining on several data sets by weight, and what a damaged one leaves in a run's record."""

from __future__ import annotations

import json
import shutil

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import build_stream, count_steps, open_sources
from pretrain.run.run import run
from tests.processes import QUIET, losses
from tests.tiny_run import SMALL

QUIET = (
    "train.steps=4", "train.global_batch_size=16", "checkpoint.every=2", "tracking.log_every=1",
    *QUIET, "tracking.progress=false", "schedule.warmup_ratio=0",
)  # fmt: skip
BOTH = "data.path={sample:digits: 3, sample:digits_test: 1}"


def config(folder, *overrides):
    return load_config("mae_digits", [*SMALL, *QUIET, f"run_dir={folder}", *overrides])[0]


def test_samples_come_by_weight(tmp_path):
    settings = config(tmp_path, BOTH)
    stream = build_stream(settings, open_sources(settings.data))
    names = [stream.sample(i)["__source__"] for i in range(1000)]
    assert names.count("sample:digits") == 750


def test_weights_change_when_a_run_is_started_again_and_the_history_is_kept(tmp_path):
    run(config(tmp_path, BOTH, "train.steps=6"))
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000006")  # as if it had been stopped before
    run(config(tmp_path, "data.path={sample:digits: 1, sample:digits_test: 1}", "train.steps=6"))
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    progress = json.loads((tmp_path / "checkpoints" / "step_00000006" / "progress.json").read_text())
    assert progress["stream"]["mixing"]["history"] == [
        [0, {"sample:digits": 3.0, "sample:digits_test": 1.0}],
        [64, {"sample:digits": 1.0, "sample:digits_test": 1.0}],
    ]


def test_an_epoch_is_all_of_every_source(tmp_path):
    settings = config(tmp_path, BOTH, "train.steps=null", "train.epochs=1")
    assert count_steps(settings, open_sources(settings.data)) == 14_000 // 16


@pytest.mark.parametrize("path", ["{}", "{sample:digits: 0}", "{sample:digits: -1, sample:digits_test: 1}"])
def test_weights_that_mean_nothing_are_refused(path):
    with pytest.raises(UserError, match=r"data.path: name at least one data set"):
        load_config("mae_digits", [f"data.path={path}"])


def test_a_damaged_sample_is_an_event_of_the_run(tmp_path, monkeypatch):
    from data_tools.dataset import dataset as module

    settings = config(tmp_path, "train.steps=2")
    key = build_stream(settings, open_sources(settings.data)).sample(5)["__key__"]
    read = module.Dataset.read

    def damaged(self, shard, number, run=None):
        sample = read(self, shard, number, run)
        if sample["__key__"] == key:
            raise module.DamagedSampleError("a.tar", key, "planted")
        return sample

    monkeypatch.setattr(module.Dataset, "read", damaged)
    run(settings)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [event for event in events if event["kind"] == "damaged"]
    assert [(event["position"], event["reason"]) for event in told] == [(5, "planted")]
    assert losses(tmp_path)[2]["damaged_samples"] == 1
