"""An average of the weights follows training, is what is looked at and released, and changes nothing of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.engine.averages import WeightAverage, restoring, trained_parameters
from pretrain.run.run import run
from tests.processes import QUIET, losses
from tests.tiny_run import SMALL

SETTINGS = [*SMALL, "train.global_batch_size=16", "train.steps=6", "checkpoint.every=3", "tracking.log_every=1",
            *QUIET]  # fmt: skip


def test_the_average_forgets_faster_early_on():
    layer = nn.Linear(2, 2, bias=False)
    average = WeightAverage(trained_parameters({"encoder": layer}), decay=0.5)
    expected = layer.weight.detach().clone()
    for step, decay in ((0, 1 / 10), (1, 2 / 11), (100, 0.5)):
        with torch.no_grad():
            layer.weight.add_(1)
        average.update(["encoder"], step)
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        torch.testing.assert_close(average.values["encoder"]["weight"], expected)


def test_only_the_roles_that_a_phase_trains_are_followed_and_a_shared_parameter_once():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    other.bias.requires_grad_(False)
    parameters = trained_parameters({"one": one, "other": other})
    assert {role: list(own) for role, own in parameters.items()} == {"one": ["weight", "bias"], "other": []}
    average = WeightAverage(parameters, decay=0.9)
    before = one.weight.detach().clone()
    with torch.no_grad():
        one.weight.zero_()
    average.update(["other"], 0)
    assert torch.equal(average.values["one"]["weight"], before)


def test_every_bit_comes_back():
    layer = nn.Linear(3, 3)
    parameters = trained_parameters({"encoder": layer})
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with torch.no_grad(), restoring(parameters):
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with an average and without."""
    folders = {}
    for name, own in (("plain", []), ("averaged", ["train.ema_decay=0.9", "tracking.picture_every=2"])):
        folders[name] = tmp_path_factory.mktemp(name)
        config, _ = load_config("mae_digits", [*SETTINGS, f"run_dir={folders[name]}", *own])
        run(config)
    return folders


def test_keeping_and_looking_at_it_changes_nothing_that_is_learned(runs):
    assert losses(runs["plain"]) == losses(runs["averaged"])


def test_a_release_and_a_new_start_take_the_average_and_a_resumed_run_both(runs, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader

    from pretrain.data import first_of, open_sources
    from pretrain.release.release import load_run_encoder
    from pretrain.run.run import build_objective
    from pretrain.weights.start import load_starting_weights

    checkpoint = runs["averaged"] / "checkpoints" / "step_00000006"
    released = load_run_encoder(runs["averaged"]).encoder.state_dict()
    trained = load_run_encoder(runs["plain"]).encoder.state_dict()
    fixed = {name for name in released if name.endswith("position_embeddings")}  # sines: nothing to average
    saved = {"averages": {"encoder": {n: torch.empty_like(v) for n, v in released.items() if n not in fixed}},
             "roles": {"encoder": {n: torch.empty_like(v) for n, v in released.items()}}}  # fmt: skip
    dcp.load(saved, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    assert all(torch.equal(released[name], value) for name, value in saved["averages"]["encoder"].items())
    assert all(torch.equal(value, saved["roles"]["encoder"][name]) for name, value in trained.items())
    assert any(not torch.equal(value, released[name]) for name, value in trained.items())

    config, _ = load_config("mae_digits", [*SETTINGS, f"init_from={runs['averaged']}"])
    objective = build_objective(config, first_of(open_sources(config.data)))
    load_starting_weights(config, objective)
    assert all(torch.equal(value, released[name]) for name, value in objective.encoder.state_dict().items())


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(UserError, match=r"train.ema_decay=1.0: must be less than 1"):
        load_config("mae_digits", ["train.ema_decay=1.0"])
