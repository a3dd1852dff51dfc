"""A job never writes into a folder that is something else's."""

from __future__ import annotations

import json

import pytest
import yaml

from finetune.__main__ import main as finetune
from pretrain.__main__ import main as pretrain
from tests.tiny_run import SMALL, make_run


def test_a_fine_tuning_does_not_overwrite_a_pretraining_run(tmp_path, capfd):
    make_run(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    assert finetune(["digits", f"encoder={tmp_path}", f"out={tmp_path}"]) == 2
    assert f"{tmp_path}: holds a pretraining run; choose another out" in capfd.readouterr().err
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("config.yaml", yaml.safe_dump({"task": {"name": "image_classification"}}), "a fine-tuning job"),
        ("manifest.json", json.dumps({"shards": []}), "a data set"),
        ("config.json", json.dumps({"model_type": "vit"}), "a released model"),
    ],
)
def test_a_run_is_not_begun_in_a_folder_of_another_kind(name, content, kind, tmp_path, capfd):
    (tmp_path / name).write_text(content)
    assert pretrain(["mae_digits", *SMALL, "train.steps=1", f"run_dir={tmp_path}"]) == 2
    assert f"{tmp_path}: holds {kind}; choose another run_dir" in capfd.readouterr().err
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a: [", b"- 3"])
def test_a_damaged_config_is_one_line(content, tmp_path, capfd):
    (tmp_path / "config.yaml").write_bytes(content)
    for command in (
        ["report", str(tmp_path)],
        ["release", str(tmp_path)],
        ["batch", str(tmp_path), "--step", "1"],
    ):
        assert pretrain(command) == 2
        error = capfd.readouterr().err
        assert f"{tmp_path}/config.yaml: damaged, it holds no settings" in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol.methods=[]", "protocol.methods=[]: name at least one"),
        ("protocol.labels_per_class=[]", "protocol.labels_per_class=[]: name at least one"),
        ("protocol.methods=[knn, knn]", "name at least one, and each once"),
        ("train.batch_size_warmup=[[8, 1]]", "train.batch_size_warmup: is for pretraining"),
        ("train.hang_timeout=3", "train.hang_timeout=3: is for pretraining"),
        ("train.clip_grad_norm=-1", "train.clip_grad_norm=-1: must be greater than 0"),
        ("task.scale=[2, 1]", "task.scale=[2, 1]: must rise"),
        ("task.label_smoothing=2", "task.label_smoothing=2: must be less than or equal to 1"),
        ("scratch={optimzer: {lr: 1}}", "scratch: optimzer: unknown key; did you mean 'optimizer'?"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(override, message, capfd):
    assert finetune(["digits", "encoder=x", override]) == 2
    assert message in capfd.readouterr().err
