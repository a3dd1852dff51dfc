"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from data_tools.errors import UserError
from pretrain.optim.build import build_optimizer, set_rates
from pretrain.optim.config import OptimizerConfig, ParameterRule, ScheduleConfig, check_optimizer
from pretrain.optim.schedules import learning_rate, weight_decay_factor
from tests.distributed.curves import STEPS, build_trainer


def test_warmup_is_linear_and_reaches_the_peak():
    schedule = ScheduleConfig("cosine", warmup_steps=4)
    assert [learning_rate(step, 10, schedule) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_warmup_ratio_shrinks_with_the_run():
    schedule = ScheduleConfig("constant", warmup_ratio=0.1)
    assert learning_rate(0, 40, schedule) == 0.25
    assert learning_rate(0, 400, schedule) == 0.025


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_falls_from_the_peak_to_the_floor(name):
    schedule = ScheduleConfig(name, warmup_steps=0, min_lr_ratio=0.1)
    rates = [learning_rate(step, 100, schedule) for step in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates))


def test_constant_stays():
    assert learning_rate(99, 100, ScheduleConfig("constant")) == 1.0


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    schedule = ScheduleConfig("wsd", warmup_steps=10, decay_ratio=0.25, min_lr_ratio=0.1)
    rates = [learning_rate(step, 100, schedule) for step in range(101)]
    assert set(rates[10:76]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[75:]))
    assert rates[81] == pytest.approx(0.1 + 0.9 * (1 - (6 / 25) ** 0.5))
    assert rates[100] == pytest.approx(0.1)


def test_step_falls_once():
    schedule = ScheduleConfig("step", warmup_steps=10, decay_ratio=0.125, min_lr_ratio=0.1)
    rates = [learning_rate(step, 800, schedule) for step in range(800)]
    assert set(rates[10:700]) == {1.0}
    assert set(rates[700:]) == {0.1}


def test_inverse_sqrt_halves_when_the_step_is_four_times_as_far():
    schedule = ScheduleConfig("inverse_sqrt", warmup_steps=10)
    assert learning_rate(9, 10_000, schedule) == 1.0
    assert learning_rate(39, 10_000, schedule) == pytest.approx(0.5)
    assert learning_rate(39, 10_000, schedule) == learning_rate(39, 50, schedule)  # needs no end


def test_weight_decay_goes_from_one_value_to_the_other_by_half_a_cosine():
    """DINO's reference (utils.cosine_scheduler): end + (start − end) / 2 × (1 + cos(π i / n))."""
    rising = OptimizerConfig(weight_decay=0.04, weight_decay_end=0.4)
    found = [0.04 * weight_decay_factor(step, 100, rising) for step in range(101)]
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(101) / 100))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert weight_decay_factor(99, 100, OptimizerConfig()) == 1.0
    with pytest.raises(
        UserError, match=r"weight_decay_end=0\.4: it begins at optimizer\.weight_decay, which is 0"
    ):
        check_optimizer(OptimizerConfig(weight_decay=0.0, weight_decay_end=0.4), ScheduleConfig())


def test_rates_are_multiples_of_what_was_configured_whatever_a_checkpoint_has_put_there():
    rules = (ParameterRule(match="*.bias", weight_decay=0.01),)
    roles = {"encoder": torch.nn.Linear(3, 2)}
    optimizer = build_optimizer(roles, OptimizerConfig(lr=0.1, weight_decay=0.04, rules=rules))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["weight_decay"] = 7.0
    optimizer.load_state_dict(state)
    set_rates(optimizer, 0.5, 10.0)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.1, 0.4]
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}


def test_a_trainer_lets_weight_decay_follow_its_schedule():
    trainer = build_trainer("ijepa", ["train.micro_batch_size=16"])
    trainer.fit()
    (optimizer,) = trainer.engine.optimizers.values()
    last = 0.05 * weight_decay_factor(
        STEPS - 1, STEPS, OptimizerConfig(weight_decay=0.05, weight_decay_end=0.4)
    )
    assert last > 0.3
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, pytest.approx(last)]
