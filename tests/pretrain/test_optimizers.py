"""Optimizers against their formulas, updates that are left out, parameter groups by rule."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.deepspeed import refuse_other_than_adam
from pretrain.engine.torch_engine import FLAT
from pretrain.optim.build import build_optimizer
from pretrain.optim.config import OptimizerConfig, ParameterRule
from pretrain.optim.exchange import rows_of, share_out
from pretrain.optim.groups import check_rules, trained_parameters
from pretrain.optim.muon import newton_schulz
from pretrain.run.run import build_objective
from tests.tiny_run import SMALL

NAMES = ("adamw", "muon", "lamb", "lars", "schedule_free")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(6, 6, 3, groups=6)
        self.wide = nn.Conv1d(6, 4, 3)
        self.linear = nn.Linear(6, 10)
        self.scale = nn.Parameter(torch.ones(1, 1, 6))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(10, 3)


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(model, config, steps=5):
    """The model and its optimizer after steps on random gradients, at a learning rate that changes."""
    optimizer = build_optimizer({"net": model}, config)
    for step in range(steps):
        set_gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * group["lr_ratio"] * (1 - step / 10)
        optimizer.step()
    return optimizer


def expected(config, advance, steps=5):
    """What `advance(name, parameter, gradient, state, lr, step)` makes of every parameter by itself."""
    model, states = network(), {}
    for step in range(steps):
        set_gradients(model, step)
        with torch.no_grad():
            for name, p in model.named_parameters():
                advance(name, p, p.grad, states.setdefault(name, {}), config.lr * (1 - step / 10), step + 1)
    return model


def assert_close(model, other):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def decay_of(name, p, config):
    return config.weight_decay if p.ndim >= 2 and not name.startswith(("embedding", "cls_token")) else 0.0


def adam(p, g, state, betas, eps, step):
    """Adam's direction."""
    state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    return state["m"] / (1 - betas[0] ** step) / ((state["v"] / (1 - betas[1] ** step)).sqrt() + eps)


def test_muon_is_its_formula_in_blocks_and_adamw_elsewhere():
    config = OptimizerConfig("muon", lr=0.02, weight_decay=0.1)

    def advance(name, p, g, state, lr, step):
        p.mul_(1 - lr * decay_of(name, p, config))
        if not name.endswith(("linear.weight", "wide.weight")):
            p.sub_(lr * adam(p, g, state, config.betas, config.eps, step))
            return
        state["b"] = 0.95 * state.get("b", 0) + g
        matrix = (g + 0.95 * state["b"]).flatten(1).double()
        x = matrix / matrix.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        p.sub_((0.2 * math.sqrt(max(matrix.shape)) * lr * x).float().view_as(p))

    model = network()
    train(model, config)
    assert_close(model, expected(config, advance))


def test_muon_is_torchs():
    """Which has no other learning rate for wide matrices, and computes in bf16 also here."""
    torch.manual_seed(0)
    model, theirs = network(), network()
    config = OptimizerConfig("muon", lr=0.02, weight_decay=0.1, momentum=0.9)
    weight = theirs.layers[0].linear.weight
    reference = torch.optim.Muon([weight], 0.02, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    optimizer = build_optimizer({"net": model}, config)
    start = weight.detach().clone()
    for step in range(5):
        set_gradients(model, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    moved = model.layers[0].linear.weight - start
    assert (moved - (weight - start)).norm() < 0.03 * moved.norm()


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4), (1, 5)])
def test_newton_schulz_keeps_directions_and_makes_them_equally_long(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    singular = u.T @ newton_schulz(matrix) @ v.T
    torch.testing.assert_close(singular, singular.diagonal().diag(), atol=1e-4, rtol=0)
    assert singular.diagonal().min() > 0.3
    assert singular.diagonal().max() < 1.3
    assert newton_schulz(torch.zeros(shape)).count_nonzero() == 0


def test_lamb_is_its_formula():
    config = OptimizerConfig("lamb", lr=0.05, weight_decay=0.1)

    def advance(name, p, g, state, lr, step):
        update = adam(p, g, state, config.betas, config.eps, step) + decay_of(name, p, config) * p
        has_ratio = p.ndim >= 2 and not name.endswith(("cls_token", "scale"))
        p.sub_(lr * (p.norm() / update.norm() if has_ratio else 1.0) * update)

    model = network()
    train(model, config)
    assert_close(model, expected(config, advance))


def test_lars_is_its_formula():
    config = OptimizerConfig("lars", lr=2.0, weight_decay=0.1)

    def advance(name, p, g, state, lr, step):
        decay = decay_of(name, p, config)
        has_ratio = p.ndim >= 2 and not name.endswith(("cls_token", "scale"))
        rate = 0.001 * p.norm() / (g.norm() + decay * p.norm()) if has_ratio else 1.0
        state["v"] = 0.9 * state.get("v", 0) + lr * rate * (g + decay * p)
        p.sub_(state["v"])

    model = network()
    train(model, config)
    assert_close(model, expected(config, advance))


def test_schedule_free_is_its_formula_and_evaluates_at_the_average():
    config = OptimizerConfig("schedule_free", lr=0.02, weight_decay=0.1)

    def advance(name, p, g, state, lr, step):
        beta1, beta2 = config.betas
        state.setdefault("z", p.clone()), state.setdefault("x", p.clone())
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
        g = g / ((state["v"] / (1 - beta2**step)).sqrt() + config.eps) + decay_of(name, p, config) * p
        state["z"] = state["z"] - lr * g
        state["x"] = (1 - 1 / step) * state["x"] + state["z"] / step  # the weight is the highest rate so far
        p.copy_((1 - beta1) * state["z"] + beta1 * state["x"])
        averages[name] = state["x"]

    averages: dict = {}
    model = network()
    optimizer = train(model, config)
    assert_close(model, expected(config, advance))
    at_y = copy.deepcopy(model)
    optimizer.eval()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, averages[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model.head.weight, at_y.head.weight, rtol=1e-3)
    optimizer.train()
    assert_close(model, at_y)


def snapshot(model, optimizer):
    states = {n: optimizer.state[p] for n, p in model.named_parameters()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return copy.deepcopy(({n: p.data for n, p in model.named_parameters()}, states, groups))


def assert_identical(found, other):
    assert type(found) is type(other)
    if isinstance(found, dict):
        assert found.keys() == other.keys()
        for key, value in found.items():
            assert_identical(value, other[key])
    elif isinstance(found, (list, tuple)):
        for value, another in zip(found, other, strict=True):
            assert_identical(value, another)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, other)
    else:
        assert found == other


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [False, True])
def test_an_update_that_is_left_out_changes_nothing(name, first):
    """Neither parameters nor states, whatever the gradients; also if it is the very first."""
    model = network()
    optimizer = train(model, OptimizerConfig(name, lr=0.02, weight_decay=0.1), steps=0 if first else 3)
    twin = copy.deepcopy(model)
    twin_optimizer = train(twin, OptimizerConfig(name, lr=0.02, weight_decay=0.1), steps=0)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for value in (math.nan, math.inf, 1.0):
        before = None if first else snapshot(model, optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        if before:
            assert_identical(snapshot(model, optimizer), before)
    optimizer.found_inf = torch.zeros(())
    for net, own in ((model, optimizer), (twin, twin_optimizer)):
        set_gradients(net, 9)
        own.step()
    assert_identical(snapshot(model, optimizer), snapshot(twin, twin_optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_the_state_before_the_first_step_moves_nothing(name):
    model = network()
    before = {n: p.data.clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer({"net": model}, OptimizerConfig(name))
    get_optimizer_state_dict(model, optimizer, options=FLAT)
    assert_identical({n: p.data for n, p in model.named_parameters()}, before)


@pytest.mark.parametrize(("name", "mode"), [*((name, "train") for name in NAMES), ("schedule_free", "eval")])
def test_a_saved_optimizer_goes_on_bit_for_bit(name, mode, tmp_path):
    """Through DCP, as checkpoints are; the weights of schedule_free saved at y or at their average."""
    config = OptimizerConfig(name, lr=0.02, weight_decay=0.1)
    model, other = network(), network(seed=1)
    optimizer, fresh = train(model, config, steps=3), train(other, config, steps=0)
    if mode == "eval":
        optimizer.eval()
    dcp.save(whole_state(model, optimizer), checkpoint_id=tmp_path, no_dist=True)
    state = whole_state(other, fresh)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(state["model"])
    set_optimizer_state_dict(other, fresh, state["optimizer"], options=FLAT)
    assert_identical(snapshot(other, fresh), snapshot(model, optimizer))
    for net, own in ((model, optimizer), (other, fresh)):
        if name == "schedule_free":
            own.train()
        for step in range(3):
            set_gradients(net, step)
            own.step()
    assert_identical(snapshot(other, fresh), snapshot(model, optimizer))


def whole_state(model, optimizer):
    return {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT),
    }


def test_rows_are_those_that_chunk_gives():
    for height in range(1, 12):
        for ranks in range(1, 6):
            parts = [len(part) for part in torch.arange(height).chunk(ranks)]
            assert [rows_of(height, ranks, r) for r in range(ranks)] == parts + [0] * (ranks - len(parts))


def test_work_is_shared_out_evenly():
    assert share_out([1, 8, 2, 4, 5], 2) == [1, 0, 0, 1, 1]
    assert sorted(share_out([3, 3], 4)) == [0, 1]


def settings(config, *names):
    """(weight decay, learning-rate ratio, muon) of parameters of the network by name."""
    model = network()
    by_id = {id(p): n for n, p in model.named_parameters()}
    found = {
        by_id[id(p)]: (group["weight_decay"], group["lr_ratio"], group.get("muon"))
        for group in build_optimizer({"net": model}, config).param_groups
        for p in group["params"]
    }
    assert len(found) == len(by_id)
    return [found[name] for name in names]


def test_the_first_rule_that_has_a_setting_gives_it():
    rules = (
        ParameterRule("*.bias", weight_decay=0.3),
        ParameterRule("net.head.*", weight_decay=0.0, lr_ratio=2.0),
        ParameterRule("net.head.bias", lr_ratio=5.0),
    )
    config = OptimizerConfig(weight_decay=0.1, rules=rules)
    names = ("head.bias", "head.weight", "layers.0.linear.bias", "layers.0.linear.weight")
    assert settings(config, *names) == [
        (0.3, 2.0, None), (0.0, 2.0, None), (0.3, 1.0, None), (0.1, 1.0, None)
    ]  # fmt: skip


def test_muon_trains_what_is_hidden_and_rules_say_otherwise():
    names = ("embedding.weight", "cls_token", "layers.0.mix.weight", "layers.0.wide.weight",
             "layers.0.linear.weight", "layers.1.linear.weight", "layers.1.linear.bias", "layers.1.scale",
             "head.weight")  # fmt: skip
    assert [muon for *_, muon in settings(OptimizerConfig("muon"), *names)] == [
        False, False, False, True, True, True, False, False, False
    ]  # fmt: skip
    rules = (ParameterRule("*.1.linear.*", use="adamw"), ParameterRule("*.head.weight", use="muon"))
    assert [muon for *_, muon in settings(OptimizerConfig("muon", rules=rules), *names)] == [
        False, False, False, True, True, False, False, False, True
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"'net\.head\.bias', which is no matrix \(shape \[3\]\)"):
        settings(OptimizerConfig("muon", rules=(ParameterRule("*.head.*", use="muon"),)))


def test_a_rule_multiplies_layer_decay():
    config, _ = load_config("mae_digits", [*SMALL, "optimizer.layer_decay=0.5",
                            "optimizer.rules=[{match: 'encoder.*', lr_ratio: 3}]"])  # fmt: skip
    objective = objective_of(config)
    parameter = objective.encoder.blocks()[0].get_parameter("layernorm_before.weight")
    groups = build_optimizer(objective.roles, config.optimizer).param_groups
    (ratio,) = [g["lr_ratio"] for g in groups if any(p is parameter for p in g["params"])]
    assert ratio == 3 * 0.5**2


def objective_of(config):
    return build_objective(config, first_of(open_sources(config.data)))


def test_a_rule_that_matches_nothing_is_an_error_that_names_the_nearest_parameter():
    config, _ = load_config("mae_digits", [*SMALL, "optimizer.rules=[{match: 'decodr.*.bias', lr_ratio: 3}]"])
    with pytest.raises(
        UserError, match=r"'decodr\.\*\.bias' matches no trained parameter; .* 'decoder\..*bias'"
    ):
        objective_of(config)


def test_with_several_optimizers_a_rule_matches_in_one_of_them():
    tiny = [
        "gan_digits",
        ["encoder.hidden_sizes=[8, 16]", "encoder.depths=[1, 1]", "objective.generator_width=8"],
    ]
    config, _ = load_config(tiny[0], [*tiny[1], "optimizer.rules=[{match: 'generator.*', lr_ratio: 3}]"])
    objective = objective_of(config)
    optimizer = objective.phases()[0].optimizer
    own = {optimizer: {"rules": [{"match": "generator.*", "lr_ratio": 3}]}}
    roles = {name for phase in objective.phases() if phase.optimizer == optimizer for name in phase.trains}
    assert "generator" not in roles
    with pytest.raises(UserError, match=r"'generator\.\*' matches no trained parameter"):
        check_rules(replace(config, optimizer=OptimizerConfig(), optimizer_overrides=own), objective)


def test_names_do_not_depend_on_compilation_and_recomputation():
    from pretrain.engine.blocks import compile_role, recompute_activations

    config, _ = load_config("mae_digits", list(SMALL))
    roles = objective_of(config).roles
    before = [t.name for t in trained_parameters(roles, None)]
    for role in roles.values():
        recompute_activations(role, "full")
        compile_role(role, "block")
    assert [t.name for t in trained_parameters(roles, None)] == before
    assert "encoder." in before[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.momentum=0.9"], r"optimizer\.momentum=0\.9: is for muon, lars, .* momentum=null"),
        (["optimizer.name=lars", "optimizer.betas=[0.8, 0.9]"], r"optimizer\.betas=\[0\.8, 0\.9\]: .*\[0\.9, 0\.95\]"),
        (["optimizer.name=muon", "optimizer.trust_coefficient=0.1"], "trust_coefficient=0.1: is for lars"),
        (["optimizer.name=muon", "optimizer.momentum=1.5"], r"optimizer\.momentum: 1\.5 must lie in \[0, 1\)"),
        (["optimizer.name=lars", "optimizer.trust_coefficient=0"], "trust_coefficient=0: must be greater than 0"),
        (["optimizer.name=schedule_free"], "schedule.name=cosine: .* set schedule.name=constant"),
        (["optimizer.name=schedule_free", "schedule.name=constant", "optimizer.betas=[0, 0.9]"], "must be greater"),
        (["optimizer.name=sgd"], "optimizer.name='sgd'"),
        (["optimizer.rules=[{match: a, lr_ration: 2}]"], r"rules\.0\.lr_ration: unknown key; did you mean 'lr_ratio'"),
        (["optimizer.rules=[{match: a}]"], "'a': changes nothing"),
        (["optimizer.rules=[{match: a, lr_ratio: -1}]"], r"rules\.0\.lr_ratio=-1: must be greater than or equal to 0"),
        (["optimizer.rules=[{match: a, use: muon}]"], "'a': use=muon is for optimizer.name=muon"),
        (["optimizer_overrides={x: {momentum: 0.5}}"], r"optimizer_overrides\.x\.momentum=0\.5: is for"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("mae_digits", overrides)


def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    monkeypatch.delitem(sys.modules, "pretrain.optim.schedule_free", raising=False)
    with pytest.raises(UserError, match=r'pip install "masquerade\[schedulefree\]"'):
        build_optimizer({"net": network()}, OptimizerConfig("schedule_free"))


@pytest.mark.parametrize("name", NAMES[1:])
def test_zero_refuses_all_but_adamw(name):
    with pytest.raises(UserError, match=rf"optimizer\.name={name}: .* engine=fsdp"):
        refuse_other_than_adam(build_optimizer({"net": network()}, OptimizerConfig(name)))
