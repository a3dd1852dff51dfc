"""A task is an objective whose question is a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.labels import Labelled, LabelledDataConfig
from finetune.tasks.image_classification import ImageClassification, ImageClassificationConfig, random_affine
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig

TINY = ViTEncoderConfig(
    image_size=8, patch_size=4, num_channels=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    image_mean=(0.5,), image_std=(0.5,),
)  # fmt: skip


def task(**settings):
    torch.manual_seed(0)
    labelled = Labelled(None, LabelledDataConfig(), [0, 1, 2], np.zeros(0, dtype=np.int64))
    return ImageClassification(ImageClassificationConfig(**settings), ViTEncoder(TINY), labelled)


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (6, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return {"image": image, "class": torch.tensor([0, 1, 2, 0, 1, 2])}


def test_zero_head_starts_at_the_loss_of_ignorance():
    one = task()
    loss = one.loss(one.phases()[0], batch())
    torch.testing.assert_close(loss.sum.item() / 6, np.log(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_sum_of_smoothed_cross_entropies(smoothing):
    one = task(head_init="normal", label_smoothing=smoothing)
    log_p = one.logits(batch()).log_softmax(1).double()
    target = torch.full((6, 3), smoothing / 3, dtype=torch.double)
    target[torch.arange(6), batch()["class"]] += 1 - smoothing
    expected = -(target * log_p).sum()
    torch.testing.assert_close(one.loss(one.phases()[0], batch()).sum.double(), expected, atol=1e-5, rtol=0)


def test_augmentation_is_decided_by_the_samples_generator_alone():
    one = task(shift=2, rotate=20, scale=(0.8, 1.2), shear=10, flip=True)
    image = batch()["image"][0].numpy().transpose(1, 2, 0)
    sample = {"__key__": "a", "image": image, "label": 1}
    first, again, other = (one.example(sample, np.random.default_rng(s)) for s in (3, 3, 4))
    assert first["class"] == 1
    assert np.array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])


class Fixed:
    """A generator that gives the upper end of every range."""

    def uniform(self, _low, high, size=None):
        return high if size is None else np.full(size, high)


def test_affine_without_range_is_the_identity_and_whole_shifts_are_exact():
    image = np.random.default_rng(0).integers(0, 255, (2, 9, 12), dtype=np.uint8)
    assert np.array_equal(random_affine(image, Fixed(), 0, 0, (1, 1), 0), image)
    moved = random_affine(image, Fixed(), 2, 0, (1, 1), 0)
    assert np.array_equal(moved[:, 2:, 2:], image[:, :-2, :-2])
    assert (moved[:, :2] == 0).all()


def test_quarter_turn_moves_every_pixel_to_its_place():
    image = np.random.default_rng(0).integers(0, 255, (1, 7, 7), dtype=np.uint8)
    turned = random_affine(image, Fixed(), 0, 90, (1, 1), 0)
    expected = np.rot90(image[0], -1)
    assert (
        np.abs(turned[0].astype(int) - expected).max() <= 1
    )  # Pillow cuts what it has interpolated to bytes
