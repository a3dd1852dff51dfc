"""Weights of a mixture by temperature, and caps on how often a source is repeated in a run."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_images, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.weights import cap_shares, temper_weights
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.mixing_plan import MixingPlan
from data_tools.stream.samples import Stream

SIZES = {"a": 10, "b": 40, "c": 250}
EVEN = dict.fromkeys(SIZES, 1.0)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    return {
        name: Stream(open_dataset(write_images(folder / name, size, 100)), 1) for name, size in SIZES.items()
    }


def planned(streams, plan):
    mixture = Mixture(streams, EVEN)
    mixture.plan_weights(plan, 0)
    return mixture


def test_temperature_makes_weights_of_sizes():
    sizes = np.array([1.0, 100.0, 10_000.0])
    for temperature, expected in ((0.0, [1, 1, 1]), (0.5, [1, 10, 100]), (1.0, [1, 100, 10_000])):
        assert np.allclose(temper_weights(np.ones(3), sizes, temperature), np.array(expected) / sum(expected))
    assert np.allclose(temper_weights(np.array([2.0, 1, 0]), sizes, 0.5), [2 / 12, 10 / 12, 0])


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1.5)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_caps_hold_and_what_is_cut_off_goes_to_the_others_in_proportion(sources):
    shares, most = np.array(sources).T
    shares = shares / shares.sum()
    capped = cap_shares(shares, most)
    if most.sum() < 1 - 1e-6:
        assert capped is None
    elif most.sum() > 1 + 1e-6:
        assert capped.sum() == pytest.approx(1) and (capped <= most + 1e-9).all()
        free = capped < most - 1e-9
        if free.any():
            ratio = capped[free] / shares[free]
            assert np.allclose(ratio, ratio[0]) and ratio[0] >= 1 - 1e-9


def test_no_source_is_repeated_more_often_than_allowed(streams):
    mixture = planned(streams, MixingPlan(EVEN, 3000, max_repeats=16))
    sources, _ = mixture.order.locate(np.arange(3000))
    assert (abs(np.bincount(sources) - [160, 640, 2200]) <= 3).all()  # one in each thousand
    for position in (0, 1, 999, 1000, 2345, 3000):
        assert (mixture.order.taken(position) == np.bincount(sources[:position], minlength=3)).all()


def test_tokens_are_what_is_shared_where_weights_are_of_tokens(tmp_path):
    both = {
        name: Stream(open_dataset(write_tokens(tmp_path / name, [length] * size)))
        for name, length, size in (("short", 10, 100), ("long", 90, 100))
    }
    mixture = Mixture(both, {"short": 1, "long": 1}, by="token")
    mixture.plan_weights(MixingPlan({"short": 1.0, "long": 1.0}, 1000, temperature=0.5), 0)
    weights = mixture.history[-1][1]
    assert weights["long"] / weights["short"] == pytest.approx(3)  # tokens: 1,000 and 9,000
    assert np.bincount(mixture.order.locate(np.arange(1000))[0]).tolist() == [750, 250]


def test_a_run_that_takes_more_than_all_repeats_is_refused(streams):
    with pytest.raises(UserError, match=r"max_repeats=2: the run takes 2,000 samples, its sources have 600"):
        planned(streams, MixingPlan(EVEN, 2000, max_repeats=2))


def test_a_plan_is_part_of_the_state_and_older_states_are_as_they_were(streams):
    plan = MixingPlan(EVEN, 1200, temperature=0.3, max_repeats=8)
    mixture = planned(streams, plan)
    state = json.loads(json.dumps(mixture.state()))
    assert state["mixing"]["plan"] == plan.state()
    fresh = Mixture(streams, EVEN)
    assert "plan" not in fresh.state()["mixing"]
    fresh.adopt(state)
    assert fresh.plan == plan and fresh.state() == state
    fresh.set_weights(EVEN, 100)
    assert fresh.plan is None


def test_what_was_taken_counts_when_a_run_is_prolonged(streams):
    loader = Loader(planned(streams, MixingPlan(EVEN, 600, max_repeats=6)), number, global_batch_size=30)
    steps = iter(loader)
    for _ in range(10):
        next(steps)
    loader.plan_weights(MixingPlan(EVEN, 1500, max_repeats=6))
    loader.close()
    counts = np.bincount(loader.stream.order.locate(np.arange(1500))[0])
    assert counts[0] == pytest.approx(60, abs=2) and counts[1] == pytest.approx(240, abs=2)
    assert [start for start, *_ in loader.stream.history] == [0, 300]


def number(sample, rng):
    return {"n": sample["json"]["number"]}
