"""MAE's crop is resized as its settings say; the published recipe's is bicubic, as the reference's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pretrain.augment.image import random_resized_crop, resized_crop
from pretrain.config.load import load_config

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOX = (5.25, 3.5, 45.5, 30.0)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_bytes_and_planes_are_resized_as_pillow_does(name):
    sampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[name]
    expected = np.asarray(Image.fromarray(NOISE).resize((24, 24), sampling, box=BOX)).transpose(2, 0, 1)
    assert np.array_equal(resized_crop(NOISE, BOX, 24, name), expected)
    plane = np.asarray(Image.fromarray(NOISE[..., 0].astype(np.float32)).resize((24, 24), sampling, box=BOX))
    two_channels = resized_crop(NOISE[..., :2], BOX, 24, name)
    assert np.array_equal(two_channels[0], plane.round().clip(0, 255))
    deep = resized_crop(NOISE.astype(np.uint16) * 257, BOX, 24, name)
    assert np.allclose(deep[0], (plane / 255).clip(0, 1), atol=1e-5)
    assert 0 <= deep.min() <= deep.max() <= 1


def test_the_published_recipe_crops_as_the_reference_and_old_runs_as_they_did():
    assert load_config("mae_images", [])[0].objective.crop_interpolation == "bicubic"
    assert load_config("mae_digits", [])[0].objective.crop_interpolation == "bilinear"
    crops = [
        random_resized_crop(NOISE, np.random.default_rng(1), 24, interpolation=name) if name
        else random_resized_crop(NOISE, np.random.default_rng(1), 24)
        for name in (None, "bilinear", "bicubic")
    ]  # fmt: skip
    assert np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
