"""Patches of arrays on any grid, positions for grids of another size, and MAE on whatever is cut into patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.objectives.mae import MAE
from pretrain.ops.patches import patchify, unpatchify
from pretrain.ops.positions import interpolate_positions, sincos_positions
from pretrain.run.run import build_objective
from tests.distributed.interface_objectives import ClipConfig, ClipEncoder
from tests.tiny_run import SMALL

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3}


@pytest.mark.parametrize(
    ("sizes", "patch"), [((12,), (3,)), ((8, 12), (4, 2)), ((4, 6, 8), (2, 3, 4))], ids=["1-d", "2-d", "3-d"]
)
def test_patches_can_be_put_together_again(sizes, patch):
    values = torch.randn(2, 3, *sizes)
    grid = tuple(s // p for s, p in zip(sizes, patch, strict=True))
    patches = patchify(values, patch)
    assert patches.shape == (2, np.prod(grid), 3 * np.prod(patch))
    assert torch.equal(unpatchify(patches, patch, grid), values)


def test_a_patch_is_read_as_the_reference_reads_it():
    image = torch.randn(1, 3, 4, 6)
    first, last = patchify(image, (2, 3))[0, 0], patchify(image, (2, 3), channels_last=False)[0, 3]
    assert torch.equal(first, image[0, :, :2, :3].permute(1, 2, 0).flatten())
    assert torch.equal(last, image[0, :, 2:, 3:].flatten())


def test_positions_stay_as_they_are_on_their_own_grid_and_are_interpolated_to_another():
    table = sincos_positions((3, 4), 8)
    assert interpolate_positions(table, (3, 4), (3, 4)) is table
    assert interpolate_positions(table, (3, 4), (5, 6)).shape == (30, 8)
    assert interpolate_positions(sincos_positions((4,), 8), (4,), (7,)).shape == (7, 8)
    with pytest.raises(ValueError, match="divisible by 6"):
        sincos_positions((2, 2, 2), 8)


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (48, 32)])
def test_a_vit_sees_images_of_another_size_as_transformers_sees_them(size):
    encoder = ViTEncoder(ViTEncoderConfig(image_size=64, **SIZES)).eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = encoder.model(encoder.pixels(image), interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(encoder({"image": image}), expected, rtol=1e-4, atol=1e-4)


def test_an_image_that_patches_do_not_fill_is_refused():
    encoder = ViTEncoder(ViTEncoderConfig(image_size=64, **SIZES))
    with pytest.raises(UserError, match="samples of 64×90: patches of 16×16 do not fill them"):
        encoder({"image": torch.rand(1, 3, 64, 90)})


def test_mae_paints_images_that_are_not_square():
    config, _ = load_config("mae_digits", [*SMALL])
    objective = build_objective(config, open_dataset("sample:digits"))
    p = config.encoder.patch_size
    batch = {
        "image": torch.rand(2, 1, 3 * p, 5 * p),
        "order": torch.stack([torch.randperm(15) for _ in range(2)]),
    }
    assert objective.loss(objective.phases()[0], batch).sum.isfinite()
    assert all(images.shape == (2, 1, 3 * p, 5 * p) for images in objective.picture(batch).rows.values())


def test_mae_paints_whatever_is_cut_into_patches():
    dataset = open_dataset("sample:digits")
    config = MAE.Config(decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    objective = MAE(config, ClipEncoder(ClipConfig("clip"), dataset), dataset)
    batch = objective.collate([objective.example(dataset[i], np.random.default_rng(i)) for i in range(3)])
    phase = objective.phases()[0]
    assert batch["clip"].shape == (3, 1, 4, 8, 12)
    assert objective.count(phase, batch) == 3 * 9  # of twelve patches, three are seen
    assert objective.loss(phase, batch).sum.isfinite()
    assert set(objective.picture(batch).rows) == {"original", "visible", "reconstruction"}
