"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pretrain.optim.config import ScheduleConfig
from pretrain.optim.schedules import learning_rate


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
