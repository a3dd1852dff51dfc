"""Recipes of VAE, VQ-VAE, BiGAN and the context encoder are the published ones: sizes, batch, rates and length."""

from __future__ import annotations

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.run.run import build_objective


def linear(n, m):
    return n * m + m


def conv(n, m, kernel):
    return n * m * kernel**2 + m


NORM = 2  # numbers for each channel
RESIDUAL_256 = conv(256, 256, 3) + conv(256, 256, 1)
# By layers, as in the papers; a norm over groups has the parameters of the batch norm in its place.
PUBLISHED = {
    "vae_mnist": {  # 784-400-20-400-784: two heads of 20
        "encoder": linear(784, 400), "posterior": 2 * linear(400, 20),
        "decoder": linear(20, 400) + linear(400, 784),
    },
    "vqvae_images": {
        "encoder": conv(3, 256, 4) + conv(256, 256, 4) + 2 * RESIDUAL_256,
        "bottleneck": linear(256, 64), "codebook": 0,
        "decoder": conv(64, 256, 3) + 2 * RESIDUAL_256 + conv(256, 256, 4) + conv(256, 3, 4),
    },
    "bigan_mnist": {
        "encoder": linear(784, 1024) + linear(1024, 1024), "projection": linear(1024, 50),
        "generator": linear(50, 1024) + linear(1024, 1024) + linear(1024, 784),
        "discriminator": linear(784 + 50, 1024) + linear(1024, 1024) + linear(1024, 1),
    },
    "context_encoder_images": {
        "encoder": conv(3, 64, 4) + conv(64, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4)
        + NORM * (64 + 128 + 256 + 512),
        "bottleneck": conv(512, 4000, 4),
        # a bias for each of the 4 × 4 places, where a transposed convolution has one for all
        "painter": linear(4000, 512 * 16) + conv(512, 256, 4) + conv(256, 128, 4) + conv(128, 64, 4) + conv(64, 3, 4)
        + NORM * (512 + 256 + 128 + 64),
        "discriminator": conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4) + conv(512, 1, 4)
        + NORM * (128 + 256 + 512),
    },
}  # fmt: skip
SCHEDULES = {  # batch, steps, epochs, learning rate by optimizer, betas, schedule
    "vae_mnist": (128, None, 10, {"main": 1e-3}, (0.9, 0.999), "constant"),
    "vqvae_images": (128, 250_000, None, {"main": 2e-4}, (0.9, 0.999), "constant"),
    "bigan_mnist": (128, None, 400, {"discriminator": 2e-4, "generator": 2e-4}, (0.5, 0.999), "wsd"),
    "context_encoder_images": (
        64, None, 25, {"discriminator": 2e-4, "generator": 2e-3}, (0.5, 0.999), "constant"
    ),
}  # fmt: skip


def build(recipe, *settings):
    config, _ = load_config(recipe, ["data.path=sample:digits", *settings])
    return config, build_objective(config, first_of(open_sources(config.data)), deferred=True)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_paper_recipe_has_the_published_sizes_and_schedule(recipe):
    config, objective = build(recipe)
    sizes = {
        name: sum(p.numel() for p in role.parameters() if p.requires_grad)
        for name, role in objective.roles.items()
    }
    assert sizes == PUBLISHED[recipe]
    batch, steps, epochs, rates, betas, schedule = SCHEDULES[recipe]
    assert (config.train.global_batch_size, config.train.steps, config.train.epochs) == (batch, steps, epochs)
    optimizers = {phase.optimizer: config.optimizer_for(phase.optimizer) for phase in objective.phases()}
    assert {name: optimizer.lr for name, optimizer in optimizers.items()} == rates
    assert all(optimizer.betas == betas for optimizer in optimizers.values())
    assert config.schedule.name == schedule


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("vae_digits", ["objective.decoder_hidden_sizes=[8]"], "is for objective.decoder=mlp"),
        ("vqvae_digits", ["encoder.patch_size=3"], "choose encoder.image_size and encoder.patch_size"),
        (
            "vqvae_digits",
            ["encoder={name: mlp}"],
            "its map has 1×1 places, and a VQ-VAE's decoder doubles it until it has 28×28 pixels",
        ),
        (
            "vqvae_digits",
            ["objective.codebook=gradient", "objective.restart_below=0.1"],
            "set objective.codebook=ema",
        ),
        ("vqvae_digits", ["objective.ema_decay=1"], "must lie in [0, 1)"),
        ("context_encoder_digits", ["objective.hole_size=28"], "must be smaller than encoder.image_size=28"),
        (
            "context_encoder_digits",
            ["objective.hole_size=22"],
            "is painted by doubling a map of at most 7 × 7",
        ),
        ("context_encoder_digits", ["objective.overlap=7"], "leave nothing of objective.hole_size=14"),
        ("vqvae_images", ["encoder.image_size=2"], "too small to be halved 2 times"),
        ("context_encoder_images", ["encoder.hidden_sizes=[8, 12]"], "must be multiples of 8"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(recipe, settings, message):
    with pytest.raises(UserError) as error:
        build(recipe, *settings)
    assert message in str(error.value)


@pytest.mark.parametrize("objective", ["vae", "vqvae", "bigan", "context_encoder"])
def test_an_encoder_of_text_is_refused(objective):
    config, _ = load_config("clm_sotu", [f"objective={{name: {objective}}}"])
    with pytest.raises(UserError, match="needs an encoder of images"):
        build_objective(config, first_of(open_sources(config.data)))


def test_a_context_encoder_without_a_discriminator_has_one_phase_and_no_such_role():
    _, objective = build(
        "context_encoder_digits", "objective.adversarial_weight=0", "optimizer_overrides=null"
    )
    assert [phase.name for phase in objective.phases()] == ["generator"]
    assert "discriminator" not in objective.roles
