"""A fine-tuning job's folder is its own, and the job says how long it will take."""

from __future__ import annotations

import json

import pytest

from finetune.__main__ import main
from pretrain.run.folder import RunFolder

QUICK = ["protocol.labels_per_class=[2]", "protocol.draws=2", "protocol.methods=[full]", "train.steps=2"]


@pytest.fixture
def finished(job, tmp_path):
    """The command of a job that has ended, and its folder."""
    command = ["digits", *job, *QUICK, f"out={tmp_path}"]
    assert main(command) == 0
    return command, tmp_path


def test_a_second_job_in_the_folder_of_a_running_one_is_refused(finished, capfd):
    command, folder = finished
    before = (folder / "config.yaml").read_bytes()
    running = RunFolder(folder)
    running.lock("out")
    assert main([*command, "seed=3"]) == 2
    assert "another job is running in this folder; choose another out" in capfd.readouterr().err
    assert (folder / "config.yaml").read_bytes() == before
    running.close()


def test_other_settings_do_not_overwrite_results(finished, capfd):
    command, folder = finished
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert main([*command, "optimizer.lr=5e-4"]) == 2
    assert "holds results of optimizer.lr=0.002, not 0.0005; choose another out" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    assert main(command) == 0  # the same settings may be measured again


def test_each_draw_says_how_long_the_others_will_take(job, tmp_path, capfd):
    assert main(["digits", *job, *QUICK, "protocol.draws=3", f"out={tmp_path}"]) == 0
    out = capfd.readouterr().out
    draws = [line for line in out.splitlines() if "labels a class, draw" in line]
    assert len(draws) == 3
    assert all(line.endswith(" left)") for line in draws)
    assert draws[-1].endswith("(0:00:00 left)")
    assert out.startswith("digits: image_classification → ")


def test_training_on_all_labels_shows_its_progress(job, tmp_path, capfd):
    settings = ["protocol.labels_per_class=null", "protocol.methods=[full]", "train.steps=40"]
    assert main(["digits", *job, *settings, f"out={tmp_path}"]) == 0
    out = capfd.readouterr().out
    assert "full: 40 steps on 200 labels" in out
    assert out.count("ETA 0:") == 20


def test_fewer_samples_than_a_batch_are_noted(job, tmp_path, capfd):
    assert main(["digits", *job, *QUICK, "train.global_batch_size=64", f"out={tmp_path}"]) == 0
    note = "2 labels a class: 20 samples are fewer than a batch (train.global_batch_size=64), so each is seen 3.2 times"
    assert note in capfd.readouterr().out
    assert any(note in line for line in json.loads((tmp_path / "finetune.json").read_text())["notes"])
