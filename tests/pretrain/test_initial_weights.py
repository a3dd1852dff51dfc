"""Weights that are drawn after sharding are those that building the whole model gives, to the last bit."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.deferred import NotDeferrableError, Recorder
from pretrain.engine.initial_weights import (
    build_deferred,
    build_whole,
    expect_checkpoint,
    give_memory,
    modules_of,
    named_tensors,
)
from pretrain.run.run import build_objective
from tests.distributed.curves import CASES

TINY = "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2"
MODELS = {
    **{name: CASES[name] for name in ("mae", "simmim", "mlm", "electra", "clm", "gan", "hard")},
    "learned positions": [*CASES["mae"], "encoder.positions=learned"],
    "bert": ["mlm_sotu", f"encoder={{name: bert, max_length: 64, {TINY}}}"],
    "llama": ["clm_sotu", f"encoder={{name: llama, max_length: 64, {TINY}}}"],
    "own head": [*CASES["clm"], "objective.tie_embeddings=false"],
    **{name: [name] for name in ("attribute_digits", "autoencoder_digits", "autoencoder_mlp_digits")},
}


class Toy:
    """Stands for an objective: its one role is what `make` returns."""

    def __init__(self, make) -> None:
        self.encoder = make()
        self.roles = {"encoder": self.encoder}
        self.initial_weights = None


def fill(objective) -> None:
    for module in modules_of(objective).values():
        give_memory(module, torch.device("cpu"))
    objective.initial_weights.fill(objective)


def assert_filled_as_whole(whole, deferred) -> None:
    for role, module in modules_of(whole).items():
        found = named_tensors(modules_of(deferred)[role])
        for name, tensor in named_tensors(module).items():
            assert torch.equal(tensor, found[name]), (role, name)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_and_objective_gets_the_bits_of_a_whole_model(name):
    config, _ = load_config(MODELS[name][0], MODELS[name][1:])
    dataset = first_of(open_sources(config.data))
    whole = build_objective(config, dataset)
    state = torch.get_rng_state()
    deferred = build_objective(config, dataset, deferred=True)
    assert all(p.is_meta for module in deferred.roles.values() for p in module.parameters())
    fill(deferred)
    assert_filled_as_whole(whole, deferred)
    assert torch.equal(torch.get_rng_state(), state)


class Odd(nn.Module):
    """What initialisers do seldom: all of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 24), nn.Linear(24, 24)
        nn.init.trunc_normal_(self.first.weight, std=0.02)
        nn.init.trunc_normal_(self.second.weight, mean=3.0, std=0.5)  # draws again, and again
        nn.init.orthogonal_(self.second.weight)
        self.tied = self.first.weight
        self.table = nn.Parameter(torch.linspace(0, 1, 24)[:, None].repeat(1, 2))
        self.random = nn.Parameter(torch.randn(7, 3) * self.table[:1, :1])
        self.register_buffer("running", torch.zeros(5))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.long))
        self.unset = nn.Parameter(torch.empty(3))
        with torch.no_grad():
            self.first.weight[:2].normal_()
            self.first.weight[2] = torch.arange(40)
            self.random.mul_(torch.full((3,), 2.0)).clamp_(min=self.table[0, 0])
            self.unset.fill_(0.5)
        self.copied = copy.deepcopy(self.first)
        self.first.weight.data.view(-1).uniform_(-1, 1)
        self.empty_on_meta = nn.Parameter(torch.ones(2 if self.unset.is_meta else 3))


def test_whatever_initialisers_do_comes_out_the_same():
    whole, deferred = (build(lambda: Toy(Odd), 3) for build in (build_whole, build_deferred))
    assert deferred.initial_weights is not None
    assert deferred.encoder.tied is deferred.encoder.first.weight
    fill(deferred)
    assert deferred.encoder.tied is deferred.encoder.first.weight
    assert_filled_as_whole(whole, deferred)


def test_a_copied_teacher_needs_one_tensor_more_and_not_a_second_model():
    def make():
        student = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
        return nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student)})

    objective = build_deferred(lambda: Toy(make), 0)
    order: list[str] = []
    places = objective.initial_weights.places
    objective.initial_weights.recording.play(set(places), lambda s, _: order.append(places[s][0][1]))
    layers = [sorted(order[i : i + 2]) for i in range(0, 16, 2)]
    assert layers == [[f"student.{i}.weight", f"teacher.{i}.weight"] for i in range(8)]


class DrawsATable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.order = torch.randperm(4)


class Seeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 4)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.weight.div_(float(self.layer.weight.norm()))


class KeepsAside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.centre = torch.zeros(4)


@pytest.mark.parametrize("made", [DrawsATable, Seeds, Reads, KeepsAside])
def test_what_cannot_be_deferred_is_built_whole_and_said(made, caplog):
    whole = build_whole(lambda: Toy(made), 1)
    with caplog.at_level(logging.WARNING):
        built = build_deferred(lambda: Toy(made), 1)
    assert built.initial_weights is None
    assert "every rank builds the whole model" in caplog.text
    assert_filled_as_whole(whole, built)


def test_a_mistake_in_a_setting_is_said_as_without_deferring(caplog):
    config, _ = load_config("mae_digits", ["encoder.patch_size=5"])
    dataset = first_of(open_sources(config.data))
    with pytest.raises(Exception, match=r"encoder\.patch_size=5"):
        build_objective(config, dataset, deferred=True)
    assert not caplog.records


def test_what_a_checkpoint_brings_is_not_drawn_and_what_it_lacks_is():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_buffer("scale", torch.full((2,), 0.5), persistent=False)

    objective = build_deferred(lambda: Toy(Scaled), 0)
    expect_checkpoint(objective)
    fill(objective)
    assert objective.encoder.weight.isnan().all()
    assert torch.equal(objective.encoder.scale, torch.full((2,), 0.5))


def test_a_recorder_leaves_torch_as_it_was():
    before = nn.init._no_grad_trunc_normal_
    with pytest.raises(NotDeferrableError), Recorder():
        torch.randperm(3)
    assert nn.init._no_grad_trunc_normal_ is before
    assert not torch.empty(2).is_meta
