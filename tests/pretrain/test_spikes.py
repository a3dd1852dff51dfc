"""An update far outside the usual is left out, and only such a one."""

from __future__ import annotations

import pytest
import torch

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.config import DeepSpeedConfig
from pretrain.engine.ddp import DDPEngine
from pretrain.engine.deepspeed import DeepSpeedEngine
from pretrain.guards.spikes import WINDOW, SpikeGuard
from pretrain.objectives.base import Loss, Objective
from pretrain.optim.build import build_optimizer
from pretrain.optim.config import OptimizerConfig

CPU = torch.device("cpu")


def usual_norms(number):
    return 1 + 0.1 * torch.randn(number, generator=torch.Generator().manual_seed(0))


def test_a_planted_outlier_is_a_spike_and_usual_norms_are_not():
    guard = SpikeGuard(6.0, CPU)
    assert not any(guard.check(norm) for norm in usual_norms(300))
    assert guard.check(torch.tensor(2.0))
    assert not guard.check(torch.tensor(1.2))


def test_one_spike_does_not_blind_the_guard_to_the_next():
    guard = SpikeGuard(6.0, CPU)
    for norm in usual_norms(WINDOW):
        guard.check(norm)
    assert all(guard.check(torch.tensor(1e6)) for _ in range(3))
    assert guard.check(torch.tensor(3.0))


def test_a_lasting_change_is_followed():
    guard = SpikeGuard(6.0, CPU)
    for norm in usual_norms(WINDOW):
        guard.check(norm)
    spikes = [bool(guard.check(norm)) for norm in 3 * usual_norms(WINDOW)]
    assert spikes[0]
    assert not any(spikes[WINDOW // 2 :])


def test_a_young_run_is_left_alone():
    guard = SpikeGuard(6.0, CPU)
    for norm in usual_norms(WINDOW // 2 - 1):
        guard.check(norm)
    assert not guard.check(torch.tensor(100.0))


def test_what_is_not_finite_is_not_remembered():
    guard = SpikeGuard(6.0, CPU)
    for norm in usual_norms(WINDOW):
        guard.check(norm)
    before = guard.norms.clone()
    assert not guard.check(torch.tensor(torch.nan))
    assert not guard.check(torch.tensor(torch.inf))
    assert torch.equal(guard.norms, before)
    assert guard.check(torch.tensor(5.0))


def test_without_a_limit_norms_are_remembered_for_later():
    off, on = SpikeGuard(None, CPU), SpikeGuard(6.0, CPU)
    for norm in usual_norms(200):
        assert not off.check(norm)
    assert not off.check(torch.tensor(1e3))
    on.load_state_dict(off.state_dict())
    assert on.check(torch.tensor(1e4))


class Linear(Objective):
    """A single layer whose loss is scaled by the batch."""

    def __init__(self):
        torch.manual_seed(0)
        self.roles = {"encoder": torch.nn.Linear(4, 1)}

    def loss(self, phase, batch):
        return Loss(self.roles["encoder"](batch["x"]).sum())


def test_the_engine_leaves_out_the_update_of_a_spike():
    objective = Linear()
    engine = DDPEngine(TrainConfig(spike_sigma=6.0), World())
    engine.prepare(objective, lambda _, roles: build_optimizer(roles, OptimizerConfig()))
    (phase,) = objective.phases()
    weight = objective.roles["encoder"].weight

    def update(size):
        before = weight.detach().clone()
        engine.backward(phase, {"x": size * torch.ones(2, 4)}, 1.0, last=True)
        _, skipped = engine.step(phase, 1.0, None)
        return bool(skipped), not torch.equal(weight, before)

    for norm in usual_norms(WINDOW):
        assert update(norm) == (False, True)
    assert update(50.0) == (True, False)
    assert update(1.0) == (False, True)


def test_deepspeed_refuses_the_guard():
    pytest.importorskip("deepspeed")
    with pytest.raises(UserError, match=r"train.spike_sigma.*engine=ddp or fsdp"):
        DeepSpeedEngine(TrainConfig(spike_sigma=6.0), DeepSpeedConfig())
