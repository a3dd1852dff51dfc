"""What a loader's worker processes are given of an objective: all that makes batches, and no network."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.config.load import load_config
from pretrain.data import build_stream, first_of, open_sources
from pretrain.run.run import build_objective
from tests.golden.recipes import COMMON, SMALLER, tokenize


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    tokenize(folder)
    return folder


def tensors_of(objective):
    """Names of parameters and buffers, by role."""
    return {
        name: [*role.state_dict(), *dict(role.named_parameters())] for name, role in objective.roles.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("recipe", sorted(SMALLER))
def test_a_copy_without_networks_is_small_and_makes_the_same_example(recipe, deferred, tokens):
    smaller = [setting.replace("{tokens}", str(tokens)) for setting in SMALLER[recipe]]
    config, _ = load_config(recipe, [*COMMON, *smaller])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), deferred)
    assert (objective.initial_weights is not None) == deferred, "as engine=fsdp has it"
    stream, own = build_stream(config, sources), tensors_of(objective)

    packed = pickle.dumps((stream, objective.without_networks()))
    assert len(packed) - len(pickle.dumps(stream)) < 1 << 20
    _, copy = pickle.loads(packed)
    modules = [
        value for value in [*vars(copy).values(), *copy.roles.values()] if isinstance(value, nn.Module)
    ]
    assert modules
    assert not any([*module.state_dict(), *module.children()] for module in modules)
    assert copy.roles["encoder"] is copy.encoder, "as in the objective"
    assert tensors_of(objective) == own, "which keeps its own"

    for sample in islice(stream.samples(np.arange(2)), 2):
        expected = objective.example(sample, np.random.default_rng(1))
        found = copy.example(sample, np.random.default_rng(1))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
