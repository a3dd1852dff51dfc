"""Few-shot ridge probes and grids of linear probes: equal to what one head alone finds, on every layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_tools.dataset.open import open_dataset
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.evaluation.few_shot import RIDGE, draw_per_class, few_shot_accuracies, fit_ridge
from pretrain.evaluation.layers import POOLINGS, pooled_layers
from pretrain.evaluation.probe_grid import DECAYS, fit_heads, probe_grid, stack_standardised
from pretrain.evaluation.probes import fit_linear, linear_accuracy
from pretrain.run.run import build_objective
from tests.cases import CASES


def clouds(seed: int, width: int, count: int = 200, apart: float = 1.0):
    """Three classes around different centres, in more dimensions than matter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    return apart * centres[labels] + torch.randn(count, width, generator=generator), labels


def test_ridge_in_its_dual_form_is_ridge():
    x, labels = clouds(0, 7, count=30)
    weight, bias = fit_ridge(x.double(), labels, 4)
    z = x.double().numpy()
    y = np.eye(4)[labels.numpy()]
    zc, yc = z - z.mean(0), y - y.mean(0)
    expected = np.linalg.solve(zc.T @ zc + RIDGE * 7 * np.eye(7), zc.T @ yc)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(bias.numpy(), y.mean(0) - z.mean(0) @ expected, rtol=1e-10)


def test_a_draw_has_so_many_of_each_class_and_all_of_a_rare_one():
    labels = torch.tensor([0] * 20 + [1] * 2 + [2] * 20)
    chosen = draw_per_class(labels, 5, np.random.default_rng(1))
    assert torch.bincount(labels[chosen]).tolist() == [5, 2, 5]
    assert len(set(chosen.tolist())) == 12


def test_few_shots_are_ten_draws_the_same_every_time():
    data = *clouds(0, 16), *clouds(1, 16)
    found = few_shot_accuracies(*data, 5)
    assert found == few_shot_accuracies(*data, 5)
    assert len(set(found)) > 1
    assert len(found) == 10
    assert np.mean(found) < np.mean(few_shot_accuracies(*data, 50))


def test_heads_that_are_trained_together_are_those_that_are_trained_alone():
    parts = [clouds(0, 12, apart=0.4)[0], 3 + 5 * clouds(1, 7, apart=0.3)[0]]
    labels = clouds(0, 12)[1]
    x, mean, std = stack_standardised(parts)
    weight, bias = fit_heads(x, labels, 3, DECAYS, steps=300)
    for g, part in enumerate(parts):
        for r, decay in enumerate(DECAYS):
            alone, alone_bias = fit_linear(part, labels, 3, decay)
            expected = (part @ alone.T + alone_bias).softmax(-1)
            found = (x[g] @ weight[g, :, r] + bias[g, r]).softmax(-1)
            torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
        assert not weight[g, part.shape[1] :].any(), "what pads a narrow layer has no weight"
    assert mean.shape == std.shape == (2, 1, 12)


def test_the_chosen_head_is_of_the_layer_that_knows_and_the_test_set_has_no_say():
    noise = torch.Generator().manual_seed(3)
    train, labels = clouds(0, 10)
    test, test_labels = clouds(5, 10)
    random, test_random = torch.randn(200, 4, generator=noise), torch.randn(200, 4, generator=noise)
    layers = {(1, "own"): random, (2, "own"): train}
    found = probe_grid(layers, labels, {(1, "own"): test_random, (2, "own"): test}, test_labels)
    assert found.chosen[0] == 2
    assert found.accuracy == pytest.approx(linear_accuracy(train, labels, test, test_labels), abs=0.03)
    assert len(found.accuracies) == 2 * len(DECAYS)
    other = probe_grid(layers, labels, {(1, "own"): test, (2, "own"): test_random}, test_labels)
    assert other.chosen == found.chosen


@pytest.mark.parametrize("case", ["mae", "mlm", "clm", "gan", "autoencoder_mlp"])
def test_every_encoder_gives_its_layers_in_one_pass_and_the_last_is_what_it_gives_anyway(case):
    config, _ = load_config(CASES[case][0], CASES[case][1:])
    dataset = first_of(open_sources(config.data))
    objective = build_objective(config, dataset)
    encoder = objective.encoder.eval()
    batch = objective.collate([objective.view(dataset[i]) for i in (3, 800)])
    calls = []
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = pooled_layers(encoder, batch)
        assert len(calls) == 1
        torch.testing.assert_close(found[len(encoder.blocks()), "own"], objective.encode(batch).pooled)
    handle.remove()
    assert [key for key in found if key[0] == 1] == [(1, pooling) for pooling in POOLINGS]
    assert len(found) == len(POOLINGS) * len(encoder.blocks())
    assert all(torch.isfinite(x).all() and len(x) == 2 for x in found.values())


def test_the_largest_value_leaves_padding_out():
    config, _ = load_config(CASES["mlm"][0], CASES["mlm"][1:])
    dataset = open_dataset("sample:sotu")
    objective = build_objective(config, dataset)
    view = objective.view({**dataset[0], "text": "We meet."})
    batch = objective.collate([view])
    used = int((batch["document_ids"] > 0).sum())
    with torch.no_grad():
        tokens = objective.encoder.eval()(batch)
        found = pooled_layers(objective.encoder, batch)[2, "max"]
    assert used < tokens.shape[1]
    torch.testing.assert_close(found, tokens[:, :used].amax(1))
