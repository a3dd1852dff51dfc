"""Mixup and CutMix: timm's numbers, and the same partners on any number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_tools.dataset.open import open_dataset
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from finetune.__main__ import main
from finetune.labels import LabelledDataConfig, read_labelled
from finetune.tasks.image_classification import ImageClassification, ImageClassificationConfig
from finetune.tasks.mixing import draw_mixing, mix
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from tests.processes import run

TINY = ViTEncoderConfig(
    image_size=28, patch_size=7, num_channels=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    image_mean=(0.5,), image_std=(0.5,),
)  # fmt: skip
BOTH = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "head_init": "normal"}


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    labelled = read_labelled(open_dataset("sample:digits_test"), LabelledDataConfig())
    return ImageClassification(ImageClassificationConfig(**BOTH), ViTEncoder(TINY), labelled)


def steps(task, rank, world_size, micro_batch_size=None):
    """{key: its example} of two steps of 16 samples, as a rank gets them."""
    loader = Loader(
        Stream(task.dataset.dataset, seed=3), task.make_example, seed=3, collate=task.collate,
        global_batch_size=16, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size,
    )  # fmt: skip
    found = {}
    for step, _ in zip(loader, range(2), strict=False):
        for keys, batch in zip(step.keys, step.micro_batches, strict=True):
            for i, key in enumerate(keys):
                found[step.position, key] = {name: value[i] for name, value in batch.items()}
    return found


def test_partners_and_shares_are_the_same_on_any_number_of_ranks(task):
    alone = steps(task, 0, 1)
    shared = steps(task, 0, 2, micro_batch_size=2) | steps(task, 1, 2, micro_batch_size=2)
    assert alone.keys() == shared.keys() and len(alone) == 32
    for key, example in alone.items():
        assert example.keys() == shared[key].keys()
        assert all(torch.equal(example[name], shared[key][name]) for name in example)
    assert len({float(example["share"]) for example in alone.values()}) > 25
    assert any(example["class"] != example["other_class"] for example in alone.values())


def test_the_target_is_timms(task):
    """mixup_target of timm/data/mixup.py, and SoftTargetCrossEntropy, in float64."""
    samples = [task.dataset.dataset[i] for i in range(12)]
    batch = task.collate([task.make_example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])
    off = 0.1 / 10

    def one_hot(numbers):
        return torch.full((12, 10), off, dtype=torch.float64).scatter_(1, numbers[:, None], 1 - 0.1 + off)

    share = batch["share"].double()[:, None]
    target = one_hot(batch["class"]) * share + one_hot(batch["other_class"]) * (1 - share)
    with torch.no_grad():
        expected = -(target * task.logits(batch).double().log_softmax(1)).sum()
        found = task.loss(task.phases()[0], batch).sum
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_mixup_blends_and_cutmix_pastes():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 3, 20, 30), dtype=np.uint8)
    blended = mix(one, other, 0.3, None)
    np.testing.assert_allclose(blended, (0.3 * one.astype(np.float64) + 0.7 * other) / 255, atol=1e-6)
    share, box = draw_mixing(ImageClassificationConfig(cutmix=1.0), (20, 30), np.random.default_rng(1))
    pasted = np.zeros((20, 30), dtype=bool)
    pasted[box] = True
    assert 0 < pasted.mean() < 1 and share == pytest.approx(1 - pasted.mean())
    expected = np.where(pasted, other, one).astype(np.float32) / np.float32(255)
    assert np.array_equal(mix(one, other, share, box), expected)


def test_how_often_and_how_much_is_as_set():
    config = ImageClassificationConfig(mixup=0.8, cutmix=1.0, mix_share=0.8, cutmix_share=0.25)
    rng = np.random.default_rng(0)
    drawn = [draw_mixing(config, (32, 32), rng) for _ in range(4000)]
    blended = [share for share, box in drawn if box is None and share < 1]
    assert np.mean([box is not None for _, box in drawn]) == pytest.approx(0.8 * 0.25, abs=0.02)
    assert len(blended) / 4000 == pytest.approx(0.8 * 0.75, abs=0.03)
    # Beta(α, α) has a mean of ½ and a variance of 1 / (8 α + 4).
    assert np.mean(blended) == pytest.approx(0.5, abs=0.02)
    assert np.std(blended) == pytest.approx(math.sqrt(1 / (8 * 0.8 + 4)), abs=0.01)
    (only,) = {
        box
        for share, box in (draw_mixing(ImageClassificationConfig(mixup=1.0), (8, 8), rng) for _ in range(9))
    }
    assert only is None


@pytest.mark.slow
def test_two_processes_train_the_classifier_of_one(job, tmp_path):
    """On all labels, which they learn together; draws of few labels they share out."""
    mixed = ["task.mixup=0.8", "task.cutmix=1", "protocol.methods=[full]", "protocol.labels_per_class=null"]
    assert main(["digits", *job, *mixed, f"out={tmp_path / 'one'}"]) == 0
    run("finetune", ["digits", *job, *mixed, f"out={tmp_path / 'two'}"], processes=2)
    one, two = (load_file(next((tmp_path / name).rglob("*.safetensors"))) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        # A softmax does not see the keys' bias: its gradient is 0 but for rounding, which Adam makes a step of.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)
