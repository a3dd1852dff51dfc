"""ELECTRA is the published one: both losses, all gradients, and draws that follow the generator's distribution."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from data_tools.errors import UserError
from pretrain.objectives.base import stack
from pretrain.objectives.electra import ELECTRA, ELECTRAConfig
from pretrain.ops.linear_cross_entropy import IGNORE, sample_tokens
from pretrain.weights.from_transformers import load_encoder
from tests.text_models import make_encoder, make_tokenizer, packed_row


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def electra(data, family="electra", **settings):
    objective = ELECTRA(ELECTRAConfig(**settings), make_encoder(family, data), data)
    torch.manual_seed(1)
    with torch.no_grad():  # norms and biases start at one and zero, where mistakes hide
        for name, role in objective.roles.items():
            for parameter in role.parameters() if name != "encoder" else ():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return objective


def rows(objective, padding=7):
    """Rows of one document with padding on the right: what plain models understand."""
    rng = np.random.default_rng(0)
    samples = [packed_row(rng, 320, 32, padding, first=0) for _ in range(4)]
    return stack([objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])


def test_both_losses_and_every_gradient_equal_those_of_transformers(data):
    objective = electra(data, mask_ratio=0.4)
    batch, phase = rows(objective), objective.phases()[0]
    models = {name: companion.model for name, companion in objective.companions().items()}
    real = (batch["document_ids"] > 0).long()
    labels = torch.full_like(batch["tokens"], IGNORE)
    for row, places, target in zip(labels, batch["masked"], batch["target"], strict=True):
        row[places[target != IGNORE]] = target[target != IGNORE]
    masked_lm = models["generator"](input_ids=batch["tokens"], attention_mask=real, labels=labels)

    # The draws: where each number lies in the cumulated distribution, in float64.
    original, corrupted = (torch.where(labels == IGNORE, batch["tokens"], labels) for _ in range(2))
    for i, (places, target, noise) in enumerate(
        zip(batch["masked"], batch["target"], batch["noise"], strict=True)
    ):
        for place in (target != IGNORE).nonzero().flatten().tolist():
            p = softmax(masked_lm.logits[i, places[place]].detach().double().numpy())
            corrupted[i, places[place]] = int((p.cumsum() <= noise[place].item()).sum())
    replaced = (corrupted != original).long()
    assert 4 < replaced.sum() < real.sum() / 2
    detection = models["discriminator"](input_ids=corrupted, attention_mask=real, labels=replaced)

    loss, count = objective.loss(phase, batch), objective.count(phase, batch)
    means = {name: loss.sum[name] / count[name] for name in count}
    assert (objective.detect(batch).corrupted == corrupted).all()
    torch.testing.assert_close(means["generator"], masked_lm.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(means["discriminator"], 50 * detection.loss, rtol=1e-5, atol=0)

    sum(means.values()).backward()
    (masked_lm.loss + 50 * detection.loss).backward()
    theirs = {name: dict(model.named_parameters()) for name, model in models.items()}
    for name, parameter in objective.encoder.model.named_parameters():
        expected = theirs["discriminator"][f"electra.{name}"].grad
        if name.startswith("embeddings."):  # what both share gets the gradients of both
            expected = expected + theirs["generator"][f"electra.{name}"].grad
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, parameter in objective.roles["generator"].named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs["generator"][f"electra.{name}"].grad, rtol=1e-4, atol=1e-6
        )
    head, detector = objective.roles["generator_head"], objective.roles["discriminator_head"]
    torch.testing.assert_close(head.bias.grad, theirs["generator"]["generator_lm_head.bias"].grad)
    for name, parameter in detector.named_parameters():
        expected = theirs["discriminator"][f"discriminator_predictions.{name}"].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_folders_of_somebody_with_either_head_are_opened(data, tmp_path, kind):
    objective = electra(data)
    objective.companions()[kind].model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data.folder / name, tmp_path / name)
    encoder = load_encoder(tmp_path)
    assert encoder.config.name == "electra" and encoder.config.embedding_size == 16
    embedded = "model.embeddings.word_embeddings.weight"
    assert encoder.state_dict()[embedded].equal(objective.encoder.state_dict()[embedded])
    if kind == "discriminator":
        batch = rows(objective)
        torch.testing.assert_close(encoder.eval()(batch), objective.encoder(batch), rtol=0, atol=1e-6)


def test_draws_follow_the_generators_distribution_and_nothing_else():
    rng = np.random.default_rng(0)
    hidden, weight, bias = rng.normal(size=(1, 3)), rng.normal(size=(5, 3)), rng.normal(size=5)
    p = np.exp(log_softmax(hidden @ weight.T + bias))[0]
    noise = (np.arange(2000) + 0.5) / 2000  # evenly spread, so that each token gets its share
    many = torch.from_numpy(np.repeat(hidden, 2000, axis=0))
    drawn = sample_tokens(
        many, torch.from_numpy(weight), torch.from_numpy(bias), torch.from_numpy(noise), 300
    )
    shares = np.bincount(drawn.numpy(), minlength=5) / 2000
    np.testing.assert_allclose(shares, p, atol=1e-3)
    assert (drawn.diff() >= 0).all()


def test_no_gradient_reaches_the_generator_through_its_draws(data):
    objective = electra(data)
    loss = objective.loss(objective.phases()[0], rows(objective))
    loss.sum["discriminator"].backward()
    assert all(
        p.grad is None for role in ("generator", "generator_head") for p in objective.roles[role].parameters()
    )
    assert objective.encoder.token_embedding.grad is not None


def test_a_bert_is_searched_by_a_generator_of_a_quarter_on_its_own_embeddings(data):
    objective = electra(data, "bert")
    generator = objective.roles["generator"]
    assert generator.config.embedding_size == 32 and generator.config.hidden_size == 8
    assert not {id(p) for p in generator.parameters()} & {id(p) for p in objective.encoder.parameters()}
    batch = rows(objective, padding=0)
    values = objective.loss(objective.phases()[0], batch)
    assert all(value.isfinite() for value in values.sum.values())
    assert set(objective.companions()) == {"generator"}, "transformers has no BERT with such a head"
    kinds = {kind for excerpt in objective.picture(batch).excerpts for _, kind in excerpt.spans}
    assert {"given", "truth"} <= kinds


def test_encoders_without_shared_embeddings_are_refused(data):
    with pytest.raises(
        UserError, match=r"shares .*; use encoder\.name=bert or electra or objective\.name=mlm"
    ):
        electra(data, "modernbert")
    with pytest.raises(UserError, match="generator of width 0"):
        electra(data, generator_width=0.001)
