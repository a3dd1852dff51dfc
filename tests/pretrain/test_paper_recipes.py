"""The recipes of papers have the published sizes and schedules; nothing is trained, and no weight has memory."""

from __future__ import annotations

import pytest

from data_tools.dataset.open import open_dataset
from pretrain.config.load import load_config
from pretrain.run.run import build_objective

IMAGENET = 1_281_167
PAPERS = {
    # recipe: (data, settings, parameters of the encoder, of the generator's blocks, samples a step, steps, rate)
    "simmim_vit_base": ("sample:digits", [], 85_798_656, 0, 2048, 800 * IMAGENET // 2048, 1e-4 * 2048 / 512),
    "simmim_swin_base": ("sample:digits", [], 86_725_176, 0, 2048, 100 * IMAGENET // 2048, 2e-4 * 2048 / 512),
    "electra_small": ("sample:sotu", ["encoder.vocab_size=30522"], 13_483_008, 608_064, 128, 1_000_000, 5e-4),
    "electra_base": ("sample:sotu", ["encoder.vocab_size=30522"], 108_891_648, 9_673_984, 256, 766_000, 2e-4),
}


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_paper_recipe_has_the_published_size_batch_steps_and_rate(recipe):
    data, settings, encoder, generator, batch, steps, rate = PAPERS[recipe]
    config, _ = load_config(recipe, settings)
    objective = build_objective(config, open_dataset(data), deferred=True)

    def count(role):
        return sum(p.numel() for p in objective.roles[role].parameters()) if role in objective.roles else 0

    assert (count("encoder"), count("generator")) == (encoder, generator)
    train = config.train
    planned = train.steps or train.batch_sizes.steps_for(train.epochs * IMAGENET)
    assert (train.global_batch_size, config.optimizer.lr) == (batch, pytest.approx(rate))
    assert planned == pytest.approx(steps, abs=1)
