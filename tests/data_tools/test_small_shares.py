"""A source with a small share of a mixture: it comes in, rarely, and its turns cost the others nothing."""

import logging

import numpy as np
import pytest
from bad_server import bad_server
from small_data import write_images, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.mixture import MixingOrder
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    a, b = write_images(folder / "a", 30, 10), write_images(folder / "b", 50, 25)
    return {"a": Stream(open_dataset(a), 1), "b": Stream(open_dataset(b), 2)}


@pytest.mark.parametrize(
    "share, window, expected", [(1e-3, 1000, 1), (1 / 5000, 10_000, 2), (3e-5, 100_000, 3)]
)
def test_a_small_share_has_its_samples_in_a_longer_window(streams, share, window, expected):
    mixture = Mixture(streams, {"a": 1 - share, "b": share})
    sources, inner = mixture.order.locate(np.arange(window))
    assert (sources == 1).sum() == expected and sorted(inner[sources == 1]) == list(range(expected))
    entry = mixture.state()["mixing"]["history"][0]
    assert entry[2:] == ([] if window == 1000 else [window])


def test_a_share_of_nearly_nothing_is_an_error_that_names_it(streams):
    with pytest.raises(
        UserError, match=r"weights: b=1e-09 comes to less than one sample in 1,000,000; give it more, or 0"
    ):
        Mixture(streams, {"a": 1.0, "b": 1e-9})


def test_a_state_of_before_keeps_its_windows_and_says_what_is_left_out(streams, caplog):
    """Where a share rounded to none, states of before say nothing of windows: all had 1,000 positions."""
    weights = {"a": 0.9999, "b": 0.0001}
    mixture = Mixture(streams, weights)
    before = mixture.state()
    before["mixing"]["history"] = [[0, weights]]
    loader = Loader(mixture, lambda s, r: {"n": s["json"]["number"]}, global_batch_size=10)
    with caplog.at_level(logging.WARNING):
        loader.load_state_dict({"position": 40, **before})
    assert caplog.text.count("b: its share rounds to none in windows of 1000") == 1
    sources, _ = mixture.order.locate(np.arange(20_000))
    assert not sources.any() and loader.state_dict() == {"position": 40, **before}
    loader.set_weights({"a": 0.999, "b": 0.001})
    assert [window for *_, window in mixture.history] == [1000, 1000]


def test_windows_of_several_lengths_follow_one_another_without_gap():
    order = MixingOrder([(0, np.array([1.0, 1.0])), (25, np.array([99.0, 1.0]))], 0, [10, 100])
    sources, inner = order.locate(np.arange(425))
    for source in range(2):
        assert sorted(inner[sources == source]) == list(range((sources == source).sum()))


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_without_a_row_of_one_remote_source_is_a_step(tmp_path, packed):
    write_tokens(tmp_path / "a", [10] * 60)
    write_tokens(tmp_path / "b", [10] * 60)
    with bad_server(tmp_path) as (url, _):
        own = {name: Stream(open_dataset(f"{url}/{name}"), 0) for name in "ab"}
        if packed:
            own = {name: PackedStream(stream, 20) for name, stream in own.items()}
        mixture = Mixture(own, {"a": 0.95, "b": 0.05})
        loader = Loader(mixture, lambda s, r: {"n": len(s["tokens"])}, global_batch_size=2)
        sources = [key[0] for _, step in zip(range(30), loader, strict=False) for key in step.keys[0]]
    assert {"a", "b"} == set(sources)
    empty = np.arange(0)
    assert list(mixture.needs(empty)) == [] and mixture.shards(empty) == []
    assert all(list(stream.needs(empty)) == [] and stream.shards(empty) == [] for stream in own.values())
