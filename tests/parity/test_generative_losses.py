"""The losses of VAE, VQ-VAE, BiGAN and the context encoder, restated in float64 NumPy as their papers write them.

Networks are ours, and tiny; what is restated is everything between what they put out and the loss. Where a gradient is
stopped or passed straight through, the gradients are those that the paper says, and no others.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.config.load import load_config
from pretrain.data import build_stream, first_of, open_sources
from pretrain.objectives.base import stack
from pretrain.run.run import build_objective
from tests.cases import CASES

SIZE = 6


def make(case, *settings):
    """A case's objective on the embedded digits, and one batch of it."""
    recipe, *tiny = CASES[case]
    config, _ = load_config(recipe, [*tiny, *settings])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    samples = [build_stream(config, sources).sample(i) for i in range(SIZE)]
    return objective, stack([objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])


def as64(tensor):
    return tensor.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_vae_is_the_negative_log_likelihood_and_beta_times_the_divergence(likelihood):
    objective, batch = make(
        "vae", f"objective.likelihood={likelihood}", "objective.beta=2", "objective.beta_warmup=0.5"
    )
    objective.begin_step(20, 80)  # half of the way up
    found = objective.loss(objective.phases()[0], batch)
    mean, log_variance = map(as64, objective.posterior(batch))
    latent = mean + np.sqrt(np.exp(log_variance)) * as64(batch["noise"])
    drawing = as64(objective.roles["decoder"](torch.from_numpy(latent).float()))
    image = as64(batch["image"]) / 255
    if likelihood == "bernoulli":
        p = sigmoid(drawing)
        pixels = -image * np.log(p) - (1 - image) * np.log(1 - p)
    else:
        pixels = -np.log(np.exp(-((image - drawing) ** 2) / (2 * 0.1**2)) / (0.1 * np.sqrt(2 * np.pi)))
    divergence = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum()
    assert found.metrics["reconstruction"].item() == pytest.approx(pixels.sum(), rel=1e-5)
    assert found.metrics["kl"].item() == pytest.approx(divergence, rel=1e-5)
    assert found.sum.item() == pytest.approx(pixels.sum() + 1.0 * divergence, rel=1e-5)


def test_vae_weight_of_the_divergence_rises_and_stays():
    objective, _ = make("vae", "objective.beta=4", "objective.beta_warmup=0.5")
    seen = []
    for step in (0, 10, 40, 79):
        objective.begin_step(step, 80)
        seen.append(objective.beta)
    assert seen == [0, 1, 4, 4]


def test_vae_is_probed_by_its_mean():
    objective, batch = make("vae")
    with torch.no_grad():
        pooled = objective.encode({"image": batch["image"]}).pooled
        assert pooled.equal(objective.posterior(batch)[0])


def nearest(z, codes):
    return ((z[:, :, None] - codes) ** 2).sum(3).argmin(2)


def split(batch, parts):
    return [{name: value.chunk(parts)[i] for name, value in batch.items()} for i in range(parts)]


def state_of(codebook):
    return {name: value.clone() for name, value in codebook.state_dict().items()}


def all_moved(before, after):
    return not any(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize("case", ["vqvae", "vqvae_gradient"])
def test_vqvae_is_the_error_the_commitment_and_the_distance_of_codes(case):
    objective, batch = make(case, "objective.beta=0.5")
    found = objective.loss(objective.phases()[0], batch)
    z, codes = as64(objective.latents(batch)), as64(objective.codebook.codes)
    chosen = codes[nearest(z, codes)]  # (B, N, E)
    drawing = as64(objective.draw(torch.from_numpy(chosen).float()))
    error = ((as64(batch["image"]) / 255 - drawing) ** 2).mean((1, 2, 3)).sum() / 0.095
    distance = ((z - chosen) ** 2).mean((1, 2)).sum()
    expected = error + 0.5 * distance + (distance if case == "vqvae_gradient" else 0)
    assert found.sum.item() == pytest.approx(expected, rel=1e-5)
    assert found.metrics["commitment"].item() == pytest.approx(distance, rel=1e-5)


@pytest.mark.parametrize("beta", [0.25, 3.0])
def test_vqvae_gradients_pass_straight_through_and_stop_where_they_should(beta):
    """β stands on the encoder's term alone, and codes learn nothing from the reconstruction."""
    objective, batch = make("vqvae_gradient", f"objective.beta={beta}")
    z = objective.latents(batch).detach().requires_grad_()
    objective.latents = lambda _: z
    objective.loss(objective.phases()[0], batch).sum.backward()

    z64, codes = as64(z), as64(objective.codebook.codes)
    numbers = nearest(z64, codes)
    quantised = torch.from_numpy(codes[numbers]).float().requires_grad_()
    image = batch["image"].float() / 255
    ((objective.draw(quantised) - image) ** 2).mean((1, 2, 3)).sum().div(0.095).backward()
    difference = 2 * (z64 - codes[numbers]) / z64[0].size
    np.testing.assert_allclose(as64(z.grad), as64(quantised.grad) + beta * difference, rtol=1e-4, atol=1e-8)
    of_codes = np.zeros_like(codes)
    np.add.at(of_codes, numbers.ravel(), -difference.reshape(-1, codes.shape[1]))
    np.testing.assert_allclose(as64(objective.codebook.parameter.grad), of_codes, rtol=1e-4, atol=1e-7)


def test_vqvae_codes_are_exponential_means_of_what_chose_them():
    objective, batch = make("vqvae", "objective.restart_below=0", "objective.ema_decay=0.6")
    sizes, sums = as64(objective.codebook.sizes), as64(objective.codebook.sums)
    with torch.no_grad():
        z = as64(objective.latents(batch))
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        smoothed = (sizes + 1e-5) / (sizes.sum() + len(sizes) * 1e-5) * sizes.sum()
        numbers = nearest(z, sums / smoothed[:, None])
        counts, chose = np.zeros_like(sizes), np.zeros_like(sums)
        np.add.at(counts, numbers.ravel(), 1)
        np.add.at(chose, numbers.ravel(), z.reshape(-1, z.shape[2]))
        sizes, sums = decay * sizes + (1 - decay) * counts, decay * sums + (1 - decay) * chose
        objective.begin_step(step, 100)
        for micro_batch in split(batch, 3):
            objective.loss(objective.phases()[0], micro_batch)
        objective.after_step(objective.phases()[0], step, torch.zeros(()))
        np.testing.assert_allclose(as64(objective.codebook.sizes), sizes, rtol=1e-5)
        np.testing.assert_allclose(as64(objective.codebook.sums), sums, rtol=1e-5, atol=1e-5)
    use = objective.codebook.describe_use()
    share = counts[counts > 0] / counts.sum()
    assert use["codebook_perplexity"].item() == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-5
    )
    assert use["used_codes"].item() == pytest.approx((counts > 0).mean())


def test_vqvae_nothing_moves_where_the_update_was_left_out():
    objective, batch = make("vqvae", "objective.restart_below=0.9")
    for skipped, image in ((1.0, batch["image"].float() * float("nan")), (0.0, batch["image"])):
        before = state_of(objective.codebook)
        objective.begin_step(0, 100)
        objective.loss(objective.phases()[0], {**batch, "image": image})
        objective.after_step(objective.phases()[0], 0, torch.tensor(skipped))
        after = state_of(objective.codebook)
        if skipped:
            assert all(value.equal(after[name]) for name, value in before.items())
        else:
            assert all_moved(before, after)


def test_vqvae_held_out_samples_move_nothing():
    objective, batch = make("vqvae")
    objective.codebook.eval()
    metrics = objective.loss(objective.phases()[0], batch).metrics
    assert not objective.seen and "used_codes" not in metrics


def test_vqvae_dead_codes_become_the_same_vectors_however_the_batch_is_shared_out():
    found = []
    for order, parts in (([0, 1, 2, 3, 4, 5], 1), ([4, 2, 0, 5, 1, 3], 3)):
        objective, batch = make("vqvae", "objective.restart_below=0.5")
        book = objective.codebook
        book.sizes[[3, 7, 8]], book.sums[[3, 7, 8]] = 1e-3, 1e3 * 1e-3  # too far away to be chosen
        book.sizes[[i for i in range(16) if i not in (3, 7, 8)]] = 1e4
        book.sums[:3] *= 1e4
        with torch.no_grad():
            z = objective.latents(batch)
        objective.begin_step(10_000, 20_000)
        for micro_batch in split({name: value[order] for name, value in batch.items()}, parts):
            objective.loss(objective.phases()[0], micro_batch)
        objective.after_step(objective.phases()[0], 10_000, torch.zeros(()))
        first = batch["turn"].argsort()[:3].tolist()
        expected = torch.stack([z[i, batch["place"][i]] for i in first])
        torch.testing.assert_close(book.codes[[3, 7, 8]], expected, rtol=1e-4, atol=1e-5)
        found.append(book.codes.detach().clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def trained_roles(objective):
    """Those that a backward pass has reached."""
    return {
        name for name, role in objective.roles.items() if any(p.grad is not None for p in role.parameters())
    }


def test_bigan_discriminator_tells_pairs_and_encoder_and_generator_share_the_flipped_loss():
    objective, batch = make("bigan")
    phases = {phase.name: phase for phase in objective.phases()}
    judge, image = objective.roles["discriminator"], batch["image"].float() / 255
    with torch.no_grad():
        encoded = objective.encode_latent(batch)
    for turn, name in enumerate(("discriminator", "generator")):
        latent = batch["latent"][:, turn]
        generated = objective.roles["generator"](latent)
        real, forged = sigmoid(as64(judge(image, encoded))), sigmoid(as64(judge(generated, latent)))
        value = np.log(real) + np.log(1 - forged)  # what D maximises
        flipped = np.log(1 - real) + np.log(forged)  # what E and G maximise
        expected = -(value if name == "discriminator" else flipped).sum()
        assert objective.loss(phases[name], batch).sum.item() == pytest.approx(expected, rel=1e-5)


def test_bigan_gradients_reach_encoder_and_generator_in_their_phase_only():
    """With D(x, z) = w·x + v·z, what reaches E(x) is σ(D)·v, and what reaches G(z) is −σ(−D)·w."""
    objective, batch = make("bigan")
    phases = {phase.name: phase for phase in objective.phases()}
    objective.loss(phases["discriminator"], batch).sum.backward()
    assert trained_roles(objective) == {"discriminator"}

    w, v = torch.randn(28 * 28), torch.randn(batch["latent"].shape[2])
    encoded = torch.randn(SIZE, len(v), requires_grad=True)
    generated = torch.rand(SIZE, 1, 28, 28, requires_grad=True)
    objective.encode_latent = lambda _: encoded
    objective.roles |= {
        "discriminator": lambda x, z: x.flatten(1) @ w + z @ v,
        "generator": lambda _: generated,
    }
    objective.loss(phases["generator"], batch).sum.backward()
    image = as64(batch["image"]).reshape(SIZE, -1) / 255
    on_encoded = image @ as64(w) + as64(encoded) @ as64(v)
    on_generated = as64(generated).reshape(SIZE, -1) @ as64(w) + as64(batch["latent"][:, 1]) @ as64(v)
    np.testing.assert_allclose(as64(encoded.grad), np.outer(sigmoid(on_encoded), as64(v)), rtol=1e-4)
    found = as64(generated.grad).reshape(SIZE, -1)
    np.testing.assert_allclose(found, np.outer(-sigmoid(-on_generated), as64(w)), rtol=1e-4, atol=1e-6)


def test_bigan_is_probed_by_what_the_discriminator_sees_of_the_encoder():
    objective, batch = make("bigan")
    seen = []
    objective.roles["discriminator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        objective.loss(objective.phases()[0], batch)
        assert objective.encode({"image": batch["image"]}).pooled.equal(seen[0])


def test_bigan_penalty_is_the_squared_gradient_at_real_images():
    """D(x, z) = w·x has the gradient w everywhere; on images scaled to [−1, 1] that is w / 2 of the [0, 1] scale."""
    objective, batch = make("bigan", "objective.r1_gamma=3", "objective.r1_every=4")
    weight = torch.randn(28 * 28)
    objective.roles["discriminator"] = lambda x, _: x.flatten(1) @ weight
    r1 = next(phase for phase in objective.phases() if phase.name == "r1")
    expected = SIZE * 3.0 / 2 * 4 * (as64(weight) ** 2).sum() / 4
    assert r1.every == 4 and r1.fp32
    assert objective.loss(r1, batch).sum.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hole", ["center", "random"])
def test_context_encoder_paints_a_block_out_and_keeps_the_band_around_it(hole):
    objective, batch = make("context_encoder", f"objective.hole={hole}", "objective.overlap=2")
    config, _ = load_config("context_encoder_digits", [])
    stream = build_stream(config, open_sources(config.data))
    corners = set()
    for i in range(SIZE):
        image = objective.view(stream.sample(i))["image"]
        top, left = batch["corner"][i].tolist()
        corners.add((top, left))
        block = image[:, top : top + 14, left : left + 14]
        np.testing.assert_array_equal(batch["target"][i].numpy(), block)
        expected = image.copy()
        expected[:, top + 2 : top + 12, left + 2 : left + 12] = round(0.1307 * 255)
        np.testing.assert_array_equal(batch["image"][i].numpy(), expected)
    assert corners == {(7, 7)} if hole == "center" else len(corners) > 3


def test_context_encoder_loss_is_the_weighted_error_and_a_thousandth_of_the_verdict():
    objective, batch = make("context_encoder", "objective.overlap=3")
    phases = {phase.name: phase for phase in objective.phases()}
    painted, target = objective.paint(batch), batch["target"].float() / 255
    assert painted.shape == target.shape == (SIZE, 1, 14, 14)
    on_real, on_painted = sigmoid(as64(objective.judge(target))), sigmoid(as64(objective.judge(painted)))
    weight = np.full((14, 14), 10.0)
    weight[3:11, 3:11] = 1
    error = (weight * ((2 * as64(painted) - 1) - (2 * as64(target) - 1)) ** 2).mean((1, 2, 3)).sum()
    found = objective.loss(phases["generator"], batch)
    assert found.sum.item() == pytest.approx(0.999 * error - 0.001 * np.log(on_painted).sum(), rel=1e-5)
    assert found.metrics["reconstruction"].item() == pytest.approx(error, rel=1e-5)

    loss = objective.loss(phases["discriminator"], batch).sum
    expected = -(np.log(on_real) + np.log(1 - on_painted)).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert trained_roles(objective) == {"discriminator"}
