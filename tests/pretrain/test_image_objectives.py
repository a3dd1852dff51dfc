"""Autoencoder, GAN and attributes: the formulas, restated in float64, and that each learns real digits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.config.load import build_config, load_recipe, merge
from pretrain.config.sections import TrainConfig
from pretrain.data import build_stream, first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.attribute import Attribute, AttributeConfig
from pretrain.objectives.attribute_answers import AttributeSpec
from pretrain.objectives.base import stack
from pretrain.objectives.derived_attributes import brightness, rotate, stroke_width
from pretrain.objectives.gan import discriminator_loss, generator_loss
from pretrain.optim.build import build_optimizer
from pretrain.optim.config import OptimizerConfig
from pretrain.run.run import build_objective
from tests.data_tools.small_data import png

SMALL = {"train": {"steps": 10, "global_batch_size": 32}}


def build(recipe, **changes):
    """The recipe's objective on the embedded digits, its engine, and a function that gives batches."""
    config = build_config(merge(merge(load_recipe(recipe)[0], SMALL), changes))
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
    stream = build_stream(config, sources)

    def batch(step, size=32):
        samples = [stream.sample(step * size + i) for i in range(size)]
        return stack([objective.example(s, np.random.default_rng([step, i])) for i, s in enumerate(samples)])

    return objective, engine, batch


def learn(objective, engine, batch, steps):
    """Train, and return the first and the last mean loss of every phase."""
    losses = {}
    for step in range(steps):
        examples = batch(step)
        for phase in objective.phases():
            if step % phase.every == 0:
                count = objective.count(phase, examples)
                loss = engine.backward(phase, examples, 1 / count, last=True)
                engine.step(phase, 1.0, max_norm=None)
                objective.after_step(phase, step, torch.zeros(()))
                losses.setdefault(phase.name, []).append(loss.sum.item() / count)
    return {name: (values[0], values[-1]) for name, values in losses.items()}


@pytest.mark.parametrize("recipe", ["autoencoder_digits", "autoencoder_mlp_digits", "attribute_digits"])
def test_the_loss_falls(recipe):
    first, last = learn(*build(recipe), steps=12)["train"]
    assert last < 0.9 * first


def test_autoencoder_loss_is_the_mean_squared_error_per_image():
    objective, _, batch = build("autoencoder_digits")
    examples = batch(0, size=4)
    with torch.no_grad():
        loss = objective.loss(objective.phases()[0], examples).sum.item()
        drawing = objective.draw(examples).double().numpy()
    target = examples["image"].double().numpy() / 255
    assert loss == pytest.approx(((drawing - target) ** 2).mean(axis=(1, 2, 3)).sum(), rel=1e-5)


def test_noise_corrupts_what_is_seen_and_not_what_is_asked_for():
    objective, _, batch = build("autoencoder_digits", objective={"noise": 0.3})
    noisy = batch(0, size=8)
    difference = noisy["image"] - noisy["target"]
    assert difference.std().item() == pytest.approx(0.3, rel=0.05)
    assert noisy["target"].min() >= 0 and noisy["target"].max() <= 1
    assert set(objective.picture(noisy).rows) == {"original", "corrupted", "reconstruction"}


@pytest.mark.slow
def test_autoencoder_beats_pca_with_as_many_components():
    from sklearn.decomposition import PCA

    objective, engine, batch = build("autoencoder_mlp_digits", objective={"latent_size": 8, "loss": "mse"})
    learn(objective, engine, lambda step: batch(step, size=64), steps=200)
    train, test = (open_dataset(name) for name in ("sample:digits", "sample:digits_test"))

    def pixels(dataset, count):
        return np.stack([dataset[i]["image"] for i in range(count)]).reshape(count, -1) / 255

    held_out = pixels(test, 1000)
    pca = PCA(8).fit(pixels(train, 6000))
    pca_error = ((pca.inverse_transform(pca.transform(held_out)) - held_out) ** 2).mean()
    with torch.no_grad():
        drawn = objective.reconstruct({"image": torch.from_numpy(held_out).float().view(-1, 1, 28, 28)})
    error = ((drawn.numpy().reshape(1000, -1) - held_out) ** 2).mean()
    assert error < 0.9 * pca_error


def test_gan_losses_are_the_published_ones():
    real, forged = np.array([0.3, -1.2, 4.0]), np.array([-0.7, 0.4, 2.0])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def ours(function, *logits, kind):
        return function(*(torch.tensor(x) for x in logits), kind).numpy()

    value = np.log(sigmoid(real)) + np.log(1 - sigmoid(forged))  # what D maximises
    for kind in ("minimax", "non_saturating"):
        np.testing.assert_allclose(ours(discriminator_loss, real, forged, kind=kind), -value, rtol=1e-12)
    np.testing.assert_allclose(
        ours(generator_loss, forged, kind="minimax"), np.log(1 - sigmoid(forged)), rtol=1e-12
    )
    np.testing.assert_allclose(
        ours(generator_loss, forged, kind="non_saturating"), -np.log(sigmoid(forged)), rtol=1e-12
    )
    hinge = np.maximum(0, 1 - real) + np.maximum(0, 1 + forged)
    np.testing.assert_allclose(ours(discriminator_loss, real, forged, kind="hinge"), hinge, rtol=1e-12)
    np.testing.assert_allclose(ours(generator_loss, forged, kind="hinge"), -forged, rtol=1e-12)


def test_r1_is_the_squared_gradient_of_a_linear_discriminator():
    """D(x) = w·x has the gradient w everywhere; on images scaled to [−1, 1] that is w / 2 of the [0, 1] scale."""
    objective, _, batch = build("gan_digits", objective={"r1_gamma": 3.0, "r1_every": 4})
    weight = torch.randn(1, 1, 28, 28, dtype=torch.float32)
    objective.score_realness = lambda image: (image * weight).sum((1, 2, 3))
    r1 = next(phase for phase in objective.phases() if phase.name == "r1")
    assert r1.every == 4 and r1.fp32
    expected = 32 * 3.0 / 2 * 4 * (weight / 2).pow(2).sum().item()
    assert objective.loss(r1, batch(0)).sum.item() == pytest.approx(expected, rel=1e-5)


def snapshot(objective):
    return {name: [p.detach().clone() for p in role.parameters()] for name, role in objective.roles.items()}


def changed(before, after):
    return {
        name
        for name, parameters in after.items()
        if any(not torch.equal(a, b) for a, b in zip(before[name], parameters, strict=True))
    }


def test_each_gan_phase_trains_its_own_player_only():
    objective, engine, batch = build("gan_digits")
    examples, moved = batch(0), {}
    for phase in objective.phases():
        before = snapshot(objective)
        engine.backward(phase, examples, 1 / 32, last=True)
        engine.step(phase, 1.0, max_norm=None)
        moved[phase.name] = changed(before, snapshot(objective))
    assert moved == {
        "discriminator": {"encoder", "head"},
        "r1": {"encoder", "head"},
        "generator": {"generator"},
    }


def test_averaged_generator_follows_by_its_decay():
    objective, engine, batch = build("gan_digits", objective={"ema_decay": 0.9})
    before = snapshot(objective)["generator_ema"]
    generator = objective.phases()[-1]
    engine.backward(generator, batch(0), 1 / 32, last=True)
    engine.step(generator, 1.0, max_norm=None)
    objective.after_step(generator, 10_000, torch.zeros(()))
    now = snapshot(objective)
    for old, average, newest in zip(before, now["generator_ema"], now["generator"], strict=True):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * newest)


def test_gan_learns_to_tell_forgeries_and_then_to_forge():
    objective, engine, batch = build("gan_digits")
    losses = learn(objective, engine, batch, steps=20)
    assert losses["discriminator"][1] < 0.8 * losses["discriminator"][0]
    assert set(losses) == {"discriminator", "r1", "generator"}
    rows = objective.picture(batch(0, size=4)).rows
    assert all(row.shape == (4, 1, 28, 28) and row.min() >= 0 and row.max() <= 1 for row in rows.values())


def test_a_vision_transformer_can_judge_too():
    vit = load_recipe("mae_digits")[0]["encoder"]
    objective, engine, batch = build("gan_digits", encoder=vit)
    losses = learn(objective, engine, lambda step: batch(step, size=8), steps=2)
    assert all(np.isfinite(losses[name]).all() for name in ("discriminator", "r1", "generator"))


def test_stroke_width_of_drawn_bars():
    for width in (1, 2, 4):
        bar = np.zeros((40, 40, 1), np.uint8)
        bar[2:38, 10 : 10 + width] = 255
        assert stroke_width(bar) == pytest.approx(width, rel=0.15)
    assert stroke_width(np.zeros((8, 8, 1), np.uint8)) == 0


def test_brightness_is_relative_to_white():
    assert brightness(np.full((2, 2, 3), 51, np.uint8)) == pytest.approx(0.2)
    assert brightness(np.full((2, 2, 1), 65535, np.uint16)) == 1.0


def test_four_quarter_turns_give_the_image_back():
    image = np.arange(9).reshape(1, 3, 3)
    turned = image
    for _ in range(4):
        turned = rotate(turned, 1)
    assert (turned == image).all()
    assert not (rotate(image, 1) == image).all()


def attribute_objective(samples, **specs):
    config = AttributeConfig(attributes={name: AttributeSpec(**spec) for name, spec in specs.items()})
    encoder = build("attribute_digits")[0].encoder
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder))
        for sample in samples:
            members = {"png": png(0), "json": json.dumps(sample["json"]).encode()}
            writer.write(sample["__key__"], members)
        finish_dataset(writer)
        return Attribute(config, encoder, open_dataset(folder))


def made_up(i, **answers):
    image = np.full((28, 28, 1), 20 * i, np.uint8)
    return {"__key__": str(i), "image": image, "json": answers}


def test_missing_answers_count_neither_in_the_loss_nor_in_its_normaliser():
    samples = [made_up(0, color="red", big=True), made_up(1, color="blue"), made_up(2, big=False), made_up(3)]
    objective = attribute_objective(
        samples, color={"field": "json.color", "weight": 2.0}, big={"field": "json.big", "kind": "binary"}
    )
    phase = objective.phases()[0]
    batch = stack([objective.example(sample, np.random.default_rng(0)) for sample in samples])
    assert objective.count(phase, batch) == 4
    whole = objective.loss(phase, batch)
    # The same by hand, answer by answer, in float64.
    with torch.no_grad():
        pooled = objective.encode(batch).pooled
        color = objective.roles["heads"](pooled)["color"].double().numpy()
        big = objective.roles["heads"](pooled)["big"].double().numpy()[:, 0]
    classes = objective.answers["color"].classes
    assert classes == {"blue": 0, "red": 1}
    log_softmax = color - np.log(np.exp(color).sum(1, keepdims=True))
    by_hand = (
        -2.0 * (log_softmax[0, 1] + log_softmax[1, 0]) + np.log1p(np.exp(-big[0])) + np.log1p(np.exp(big[2]))
    )
    assert whole.sum.item() == pytest.approx(by_hand, rel=1e-5)
    right, answered = whole.metrics["color_accuracy"]
    assert answered.item() == 2
    assert right.item() == (color[0].argmax() == 1) + (color[1].argmax() == 0)


def test_a_json_field_is_asked_of_text():
    objective, engine, batch = build("attribute_sotu")
    assert {"Democratic", "Republican"} <= set(objective.answers["party"].classes)
    first, last = learn(objective, engine, lambda _: batch(0, size=16), steps=8)["train"]
    assert last < 0.8 * first  # one batch, learned by heart


def test_numbers_are_standardised_by_what_the_data_hold():
    samples = [made_up(i, weight=w) for i, w in enumerate([1.0, 2.0, 3.0, 6.0])]
    objective = attribute_objective(samples, weight={"field": "json.weight", "kind": "number"})
    asked = [objective.example(sample, np.random.default_rng(0))["answer/weight"] for sample in samples]
    assert np.mean(asked) == pytest.approx(0, abs=1e-9)
    assert np.std(asked) == pytest.approx(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"field": "json.colour"}, "no sample has the field 'json.colour'"),
        ({"field": "json.same"}, "every sample says 1; there is nothing to learn"),
        ({"field": "json.word", "kind": "number"}, "'a' is no number"),
        ({"field": "label", "derive": "brightness"}, "give either field or derive"),
        ({"derive": "brightness"}, "say kind: number"),
        ({"derive": "rotation", "kind": "number"}, "say kind: classes"),
    ],
)
def test_a_question_without_answers_is_refused(spec, message):
    samples = [made_up(i, same=1, word="ab"[i]) for i in range(2)]
    with pytest.raises(UserError) as error:
        attribute_objective(samples, question=spec)
    assert message in str(error.value)


def test_optimizer_overrides_reach_one_player_only():
    config = build_config(
        merge(load_recipe("gan_digits")[0], {"optimizer_overrides": {"generator": {"lr": 1e-5}}})
    )
    assert config.optimizer_for("generator").lr == 1e-5
    assert config.optimizer_for("discriminator") == config.optimizer == OptimizerConfig(
        lr=5e-4, betas=(0.5, 0.99), weight_decay=0.0
    )  # fmt: skip
