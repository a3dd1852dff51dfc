"""The saved classifier gives the trained one's answers to people who have only `transformers`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from data_tools.dataset.open import open_dataset
from finetune.__main__ import main
from finetune.config import load_config
from finetune.protocol import run_protocol
from finetune.save import save_classifier

ALL = [
    "protocol.labels_per_class=null",
    "protocol.methods=[full, knn]",
    "optimizer.lr=0.003",
    "train.steps=20",
]


@pytest.fixture
def sample(tmp_path):
    sample = open_dataset("sample:digits_test")[3]
    Image.fromarray(sample["image"][..., 0]).save(tmp_path / "picture.png")
    return sample


def trained(job, pooling, head_norm=False):
    config, _ = load_config("digits", [*job, *ALL, f"task.pooling={pooling}", f"task.head_norm={head_norm}"])
    return run_protocol(config, lambda _: None)


def logits_of(task, sample):
    view = {"image": torch.from_numpy(task.encoder.view(sample)["image"])[None]}
    with torch.no_grad():
        return task.logits(view)[0]


@pytest.mark.slow
def test_classifier_on_the_class_token_opens_whole(job, sample, tmp_path, run_as_stranger):
    result, task = trained(job, "cls")
    line = save_classifier(task, tmp_path / "classifier", result)
    assert "AutoModelForImageClassification" in line
    code = """
import sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("classifier").eval()
inputs = AutoImageProcessor.from_pretrained("classifier")(Image.open("picture.png"), return_tensors="pt")
print(*model(**inputs).logits[0].tolist())
assert model.config.id2label[3] == "3"
"""
    compare(run_as_stranger(code, tmp_path), logits_of(task, sample))


@pytest.mark.slow
@pytest.mark.parametrize("head_norm", [False, True])
def test_card_of_a_mean_pooled_classifier_joins_encoder_and_head(
    job, sample, tmp_path, head_norm, run_as_stranger
):
    result, task = trained(job, "mean", head_norm)
    line = save_classifier(task, tmp_path / "classifier", result)
    assert "apart" in line
    (code,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "classifier" / "README.md").read_text(), re.DOTALL
    )
    code = code.replace('folder = "."', 'folder = "classifier"') + "\nprint(*logits[0].tolist())"
    compare(run_as_stranger(code, tmp_path), logits_of(task, sample))


def compare(printed, expected):
    theirs = torch.tensor([float(x) for x in printed.split()])
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=1e-4)
    assert expected.abs().max() > 0.01  # a head that has learned something


def test_job_on_all_labels_saves_a_classifier(job, tmp_path, capfd):
    assert main(["digits", *job, *ALL, f"out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "finetune.json").read_text())["rows"]
    assert [(r["labels_per_class"], r["method"]) for r in rows] == [
        (None, m) for m in ("full", "knn", "knn_untrained", "knn_raw")
    ]
    assert (tmp_path / "classifier" / "README.md").is_file()
    assert "all labels" in capfd.readouterr().out
