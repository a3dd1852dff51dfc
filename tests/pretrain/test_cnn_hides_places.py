"""The plain CNN hides places as the other encoders of images do, so that SimMIM runs on it."""

from __future__ import annotations

import numpy as np
import torch

from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.encoders.image.cnn import CNNEncoder, CNNEncoderConfig
from pretrain.objectives.base import stack
from pretrain.run.run import build_objective
from tests.cases import CASES


def test_what_is_hidden_is_not_seen_and_a_colour_stands_there():
    encoder = CNNEncoder(CNNEncoderConfig(hidden_sizes=(8, 16))).eval()
    image, mask = torch.rand(1, 1, 28, 28), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    other = image.clone()
    other[..., 7:14, 14:21] = 0.3
    colour = torch.tensor([0.5])
    with torch.no_grad():
        assert torch.equal(*(encoder({"image": x}, mask=mask, mask_token=colour) for x in (image, other)))
        shown = image.clone()
        shown[..., 7:14, 14:21] = 0.75  # 0.5 · standard deviation 0.5 + mean 0.5
        torch.testing.assert_close(encoder({"image": shown}), encoder({"image": image}, mask, colour))


def test_simmim_learns_the_colour():
    recipe, *settings = CASES["simmim"]
    settings = [s for s in settings if not s.startswith("encoder")]
    config, _ = load_config(recipe, [*settings, "encoder={name: cnn, hidden_sizes: [8, 16]}"])
    dataset = first_of(open_sources(config.data))
    objective = build_objective(config, dataset)
    batch = stack([objective.example(dataset[i], np.random.default_rng(i)) for i in range(4)])
    (phase,) = objective.phases()
    objective.loss(phase, batch).sum.backward()
    (colour,) = objective.roles["mask_token"].parameters()
    assert colour.grad.abs().sum() > 0
