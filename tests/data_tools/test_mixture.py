import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_images, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.mixture import MixingOrder, largest_remainder
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


@given(weights=st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.1))
def test_shares_sum_up_and_are_within_one_of_proportional(weights):
    counts = largest_remainder(np.array(weights), 1000)
    assert counts.sum() == 1000
    assert (np.abs(counts - np.array(weights) / sum(weights) * 1000) < 1).all()


@given(
    changes=st.lists(
        st.tuples(st.integers(1, 150), st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=3, max_size=3)),
        min_size=1, max_size=4,
    ).filter(lambda c: all(sum(w) for _, w in c)),
    seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_source_is_read_in_order_without_gap_or_repeat_whatever_changes(changes, seed):
    start, history = 0, []
    for length, weights in changes:
        history.append((start, np.array(weights)))
        start += length
    order = MixingOrder(history, seed, [40] * len(history))
    sources, inner = order.locate(np.arange(start + 100))
    for source in range(3):
        assert sorted(inner[sources == source]) == list(range((sources == source).sum()))
    alone = [tuple(int(x[0]) for x in order.locate(np.array([p]))) for p in range(0, start + 100, 7)]
    assert alone == [(sources[p], inner[p]) for p in range(0, start + 100, 7)]


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    a, b = write_images(folder / "a", 30, 10), write_images(folder / "b", 50, 25)
    return {"a": Stream(open_dataset(a), 1), "b": Stream(open_dataset(b), 2)}


def number(sample, rng):
    return {"n": sample["json"]["number"]}


def test_shares_hold_in_every_thousand(streams):
    mixture = Mixture(streams, {"a": 0.3, "b": 0.7})
    sources, _ = mixture.order.locate(np.arange(5000))
    assert [(sources[i : i + 1000] == 0).sum() for i in range(0, 5000, 1000)] == [300] * 5


def test_each_source_keeps_its_own_epochs(streams):
    mixture = Mixture(streams, {"a": 0.5, "b": 0.5})
    samples = [mixture.sample(p) for p in range(200)]
    from_a = [s["__key__"] for s in samples if s["__source__"] == "a"]
    assert len(set(from_a[:30])) == 30
    assert sorted(from_a[:30]) == sorted(from_a[30:60])
    assert all(key.startswith("a/") for key in from_a)


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_change_during_a_run_and_the_history_resumes(streams, workers):
    def loader():
        mixture = Mixture(streams, {"a": 0.9, "b": 0.1}, seed=4)
        return Loader(mixture, number, global_batch_size=20, workers=workers)

    run, keys = loader(), []
    steps = iter(run)
    for _ in range(3):
        keys += next(steps).keys[0]
    run.set_weights({"a": 0.0, "b": 1.0})
    for _ in range(3):
        keys += next(steps).keys[0]
    state = run.state_dict()
    keys += next(steps).keys[0]
    run.close()
    assert all(key.startswith("b/") for key in keys[60:])
    assert sum(key.startswith("a/") for key in keys[:60]) > 40
    assert len(set(keys[60:])) > 40 and [entry[0] for entry in state["mixing"]["history"]] == [0, 60]
    resumed = loader()
    resumed.load_state_dict(state)
    assert next(iter(resumed)).keys[0] == keys[120:]
    resumed.close()
    assert keys == [resumed.stream.sample(p)["__key__"] for p in range(140)]


def test_by_token_makes_the_weights_shares_of_tokens(tmp_path):
    short = Stream(open_dataset(write_tokens(tmp_path / "short", [10] * 50)), 0)
    long = Stream(open_dataset(write_tokens(tmp_path / "long", [90] * 50)), 0)
    mixture = Mixture({"short": short, "long": long}, {"short": 0.5, "long": 0.5}, by="token")
    tokens = {"short": 0, "long": 0}
    for position in range(1000):
        sample = mixture.sample(position)
        tokens[sample["__source__"]] += len(sample["tokens"])
    assert tokens["short"] == pytest.approx(tokens["long"], rel=0.02)
    rows = Mixture(
        {"s": PackedStream(short, 20), "l": PackedStream(long, 20)}, {"s": 0.25, "l": 0.75}, by="token"
    )
    sources = [rows.sample(position)["__source__"] for position in range(1000)]
    assert sources.count("s") == 250  # full rows have as many tokens as one another


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0},
        {"a": 1.0, "b": -1.0},
        {"a": 0.0, "b": 0.0},
        {"a": 1.0, "c": 1.0},
        {"a": 1.0, "b": math.inf},
    ],
)
def test_impossible_weights_are_refused(streams, weights):
    with pytest.raises(UserError, match="weights"):
        Mixture(streams, weights)
