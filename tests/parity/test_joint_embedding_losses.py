"""SimCLR, VICReg, DINO and I-JEPA: the published losses restated in NumPy on what the networks put out, in float64.

Gradients are compared with differences of the restated loss along a random direction of all trained weights, in which
what a stop-gradient holds fixed is fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.objectives.dino import DINO, DINOConfig
from pretrain.objectives.dino_head import sinkhorn
from pretrain.objectives.ijepa import IJEPA, IJEPAConfig
from pretrain.objectives.projector import BatchNorm
from pretrain.objectives.simclr import SimCLR, SimCLRConfig
from pretrain.objectives.vicreg import VICReg, VICRegConfig
from pretrain.ops.world import World

BATCH, SMALL_CROPS = 5, 3
SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
STEP, TOTAL_STEPS = 3, 10


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(objective_class, config):
    torch.manual_seed(0)
    objective = objective_class(config, ViTEncoder(ViTEncoderConfig(**SIZES)), dataset=None)
    with torch.no_grad():  # biases and norms start at zero and one, where mistakes hide
        for role in objective.roles.values():
            for parameter in role.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    objective.begin_step(STEP, TOTAL_STEPS)
    return objective


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pooled(objective, role, image):
    encoder = objective.roles[role]
    return encoder({"image": image})[:, 1:].mean(1)


def assert_published(objective, batch, restated):
    """`restated()` is the loss of a batch as a number, by the networks as they are now."""
    phase = objective.phases()[0]
    loss = objective.loss(phase, batch).sum
    loss.backward()
    assert float(loss.detach()) / BATCH == pytest.approx(restated(), rel=1e-10)
    trained = [p for name in phase.trains for p in objective.roles[name].parameters() if p.requires_grad]
    others = {name for name in objective.roles if name not in phase.trains}
    assert all(p.grad is None for name in others for p in objective.roles[name].parameters())
    slope = sum(float((p.grad * direction).sum()) for p, direction in pairs(trained)) / BATCH
    assert abs(slope) > 1e-6
    assert slope == pytest.approx(difference(trained, restated), rel=1e-5)


def pairs(parameters):
    generator = torch.Generator().manual_seed(7)
    return [(p, torch.randn(p.shape, generator=generator)) for p in parameters]


@torch.no_grad()
def difference(parameters, function, width=1e-6):
    """The slope of a function of weights along a random direction."""
    values = []
    for sign in (1, -2, 1):
        for parameter, direction in pairs(parameters):
            parameter.add_(direction, alpha=sign * width)
        values.append(function())
    return (values[0] - values[1]) / (2 * width)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_simclr_is_nt_xent(norm):
    objective = build(SimCLR, SimCLRConfig(projection_sizes=(12, 6), projection_norm=norm))
    views = images(BATCH, 2, 3, 8, 8)

    @torch.no_grad()
    def restated():
        z = objective.roles["projector"](pooled(objective, "encoder", views.flatten(0, 1)), World().sum)
        z = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
        errors = []
        for i in range(2 * BATCH):
            partner = i + 1 if i % 2 == 0 else i - 1
            likeness = {j: z[i] @ z[j] / 0.2 for j in range(2 * BATCH) if j != i}
            errors.append(np.log(sum(np.exp(s) for s in likeness.values())) - likeness[partner])
        return np.mean(errors)

    assert_published(objective, {"views": views}, restated)


def test_vicreg_is_invariance_variance_and_covariance():
    objective = build(VICReg, VICRegConfig(expander_sizes=(12, 6)))
    views = images(BATCH, 2, 3, 8, 8)

    @torch.no_grad()
    def restated():
        one, two = (
            objective.roles["expander"](pooled(objective, "encoder", views[:, i]), World().sum).numpy()
            for i in (0, 1)
        )
        total = 25 * np.mean((one - two) ** 2)
        for x in (one, two):
            deviation = np.sqrt(x.var(0, ddof=1) + 1e-4)
            assert deviation.min() < 1 < deviation.max()
            total += 25 * np.maximum(0, 1 - deviation).mean() / 2
            covariance = np.cov(x.T)
            total += (covariance**2)[~np.eye(6, dtype=bool)].sum() / 6
        return total

    assert_published(objective, {"views": views}, restated)


def sinkhorn_of(logits, temperature):
    q = np.exp(logits / temperature).T  # (K, B)
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("balance", ["centring", "sinkhorn"])
@pytest.mark.parametrize("frozen", [False, True])
def test_dino_is_cross_entropy_with_the_teacher_over_pairs_of_other_crops(balance, frozen):
    config = DINOConfig(
        prototypes=10, head_hidden_size=12, head_bottleneck_size=6, balance=balance, small_crops=SMALL_CROPS,
        small_size=4, freeze_last_layer_ratio=0.5 if frozen else 0.2,
    )  # fmt: skip
    objective = build(DINO, config)
    objective.roles["centre"].mean.copy_(images(10) / 10)
    batch = {"first": images(BATCH, 3, 8, 8), "second": images(BATCH, 3, 8, 8).flip(3),
             "small": images(BATCH, SMALL_CROPS, 3, 4, 4)}  # fmt: skip
    crops = [batch["first"], batch["second"], *batch["small"].unbind(1)]
    temperature = 0.04 + 0.03 * min(1, STEP / TOTAL_STEPS / 0.3)
    prototypes = objective.roles["head"].prototypes.detach().clone()

    def outputs(head, encoder, crop):
        x = head.mlp(pooled(objective, encoder, crop)).numpy()
        w = head.prototypes.numpy()
        return x / np.linalg.norm(x, axis=1, keepdims=True) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T

    @torch.no_grad()
    def restated():
        own = objective.roles["head"].prototypes
        moved = own.clone()
        if frozen:  # what stays as it is has no slope
            own.copy_(prototypes)
        student = [log_softmax(outputs(objective.roles["head"], "encoder", crop) / 0.1) for crop in crops]
        own.copy_(moved)
        teacher = [outputs(objective.roles["teacher_head"], "teacher", crop) for crop in crops[:2]]
        if balance == "sinkhorn":
            truth = np.split(sinkhorn_of(np.concatenate(teacher), temperature), 2)
        else:
            centre = objective.roles["centre"].mean.numpy()
            truth = [np.exp(log_softmax((x - centre) / temperature)) for x in teacher]
        terms = [
            -(q * log_p).sum(1).mean()
            for i, q in enumerate(truth)
            for j, log_p in enumerate(student)
            if i != j
        ]
        assert len(terms) == 2 * (2 + SMALL_CROPS) - 2
        return np.mean(terms)

    assert_published(objective, batch, restated)


def test_the_centre_follows_what_the_teacher_said_in_all_micro_batches_and_not_in_a_skipped_step():
    objective = build(
        DINO, DINOConfig(prototypes=10, head_hidden_size=12, head_bottleneck_size=6, small_crops=0)
    )
    phase, centre = objective.phases()[0], objective.roles["centre"]
    parts = [{"first": images(n, 3, 8, 8), "second": images(n, 3, 8, 8)} for n in (2, 3)]
    said = []
    objective.roles["teacher_head"].register_forward_hook(lambda _m, _i, out: said.append(out.numpy()))
    for part in parts:
        objective.loss(phase, part)
    objective.after_step(phase, STEP, torch.zeros(()))
    expected = 0.1 * np.concatenate(said).mean(0)
    np.testing.assert_allclose(centre.mean.numpy(), expected, rtol=1e-10)
    centre(torch.full((2, 10), float("nan")))
    objective.after_step(phase, STEP, torch.ones(()))
    np.testing.assert_allclose(centre.mean.numpy(), expected, rtol=1e-10)
    centre.eval()
    centre(torch.ones(2, 10))
    objective.after_step(phase, STEP, torch.zeros(()))
    np.testing.assert_allclose(centre.mean.numpy(), expected, rtol=1e-10)


def test_sinkhorn_spreads_answers_evenly_where_a_softmax_gives_all_to_one():
    logits = images(40, 4) * 0.2
    logits[:, 0] += 0.5
    answers = sinkhorn(logits, 0.05, World()).numpy()
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-10)
    assert torch.softmax(logits / 0.05, 1)[:, 0].mean() > 0.99
    assert answers.mean(0).max() < 0.3


def smooth_l1(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def test_ijepa_is_smooth_l1_to_the_layer_normalised_tokens_of_each_block():
    config = IJEPAConfig(
        predictor_hidden_size=12, predictor_num_hidden_layers=1, predictor_num_attention_heads=2
    )
    objective = build(IJEPA, config)
    rng = np.random.default_rng(0)
    sample = {"__key__": "a", "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)}
    examples = [objective.example(sample, rng) for _ in range(BATCH)]
    names = ("context", "targets", "target_size")
    batch = {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in names}
    sizes = batch["target_size"][:, 0].tolist()
    assert len(set(sizes)) > 1 and max(sizes) <= batch["targets"].shape[2], "some blocks are padded"
    batch["image"] = images(BATCH, 3, 8, 8)
    predictor = objective.roles["predictor"]

    @torch.no_grad()
    def restated():
        tokens = objective.roles["encoder"](batch, ids_keep=batch["context"])
        truth = objective.roles["teacher"](batch)[:, 1:].numpy()
        truth = (truth - truth.mean(-1, keepdims=True)) / np.sqrt(truth.var(-1, keepdims=True) + 1e-5)
        errors = []
        for i, size in enumerate(sizes):
            for block in batch["targets"][i, :, :size]:  # alone, without any padding
                places = block.view(1, 1, size)
                guess = predictor(
                    tokens[i : i + 1], batch["context"][i : i + 1], places, places >= 0, (4, 4)
                )[0, 0].numpy()
                errors.append(smooth_l1(guess - truth[i, block.numpy()]).mean())
        return np.mean(errors)

    assert_published(objective, batch, restated)


def test_batch_norm_is_that_of_torch():
    ours, theirs = BatchNorm(6), torch.nn.BatchNorm1d(6)
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(own.normal_())
    x = images(BATCH, 6).requires_grad_()
    y = x.detach().clone().requires_grad_()
    found, expected = ours(x, World().sum), theirs(y)
    torch.testing.assert_close(found, expected)
    found.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
