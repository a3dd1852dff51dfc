"""Packing at the size of a cluster: the same rows as ever, in small tables, opened without reading a length."""

import numpy as np
import pytest
from best_fit_by_hand import best_fit_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import best_fit_rows, write_tokens

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.order import packing
from data_tools.stream import packing_table
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


def assert_as_ever(lengths, *arguments):
    rows = best_fit_rows(np.array(lengths), *arguments)
    for found, expected in zip(
        (rows.row_start, rows.document, rows.start, rows.size),
        best_fit_by_hand(lengths, *arguments),
        strict=True,
    ):
        assert np.array_equal(found, expected)


@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=60).filter(sum),
    row=st.integers(1, 70),
    window=st.sampled_from([1, 16, 4096]),
)
@settings(max_examples=50, deadline=None)
def test_many_windows_at_a_time_are_packed_as_one_by_one(lengths, row, window):
    assert_as_ever(lengths, row, window)


DISTRIBUTIONS = {
    "text": lambda rng: rng.lognormal(3, 1, 600),
    "alike": lambda rng: np.full(400, 90),  # no pair of its sizes fills what is left
    "two sizes": lambda rng: rng.choice([3, 87], 600),  # sums that no pair has, far down
    "long": lambda rng: rng.lognormal(7, 1, 200),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_documents_of_every_kind_are_packed_as_one_by_one(name):
    lengths = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(int)
    assert_as_ever(lengths, 200, 128)


@pytest.mark.parametrize("mean, most", [(5.5, 12), (7.5, 16)], ids=["text", "longer than rows"])
def test_a_table_takes_few_bytes_a_document(tmp_path, mean, most):
    lengths = np.random.default_rng(0).lognormal(mean, 1, 4096).astype(np.uint32) + 1
    find = packing_table.find_row_plan
    find(lambda first, last: lengths[first:last], len(lengths), "these", 1024, "best_fit", 4096, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) <= most * len(lengths)


@pytest.fixture
def tokens(tmp_path, monkeypatch):
    """Documents of which a table is kept, packed in blocks of few."""
    monkeypatch.setattr(packing_table, "KEPT_FROM", 100)
    monkeypatch.setattr(packing, "BLOCK_BYTES", 1)
    return write_tokens(tmp_path / "tokens", np.random.default_rng(1).integers(1, 60, 130).tolist())


def test_lengths_are_read_in_blocks_once_and_never_again(tokens, monkeypatch):
    asked = []

    def read_lengths(dataset, first, last):
        asked.append((first, last))
        return read(dataset, first, last)

    read = Dataset.read_lengths
    monkeypatch.setattr(Dataset, "read_lengths", read_lengths)
    first = PackedStream(Stream(open_dataset(tokens)), 32, window=50)
    assert asked == [(0, 50), (50, 100), (100, 130)]
    packing_table.read_row_plan.cache_clear()  # as another process begins
    again = PackedStream(Stream(open_dataset(tokens)), 32, window=50)
    assert len(asked) == 3
    assert again.state() == first.state()
    assert all(np.array_equal(again.sample(p)["tokens"], first.sample(p)["tokens"]) for p in range(20))


def test_a_selection_is_packed_by_the_lengths_of_its_own(tokens):
    dataset = open_dataset(tokens)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:110]
    assert np.array_equal(dataset.select(chosen).lengths, dataset.lengths[chosen])
    packed = PackedStream(Stream(dataset.select(chosen)), 32)
    assert packed.plan.tokens == dataset.lengths[chosen].sum()
    assert packed.plan.tokens != PackedStream(Stream(dataset), 32).plan.tokens


def test_documents_without_lengths_are_measured_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(packing_table, "KEPT_FROM", 10)
    folder = write_tokens(tmp_path / "tokens", [20] * 40, with_length=False)
    plans = [PackedStream(Stream(open_dataset(folder)), 32).plan for _ in range(2)]
    assert plans[0].tokens == plans[1].tokens == 800
    assert sum("measure" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("method", ["best_fit", "cut"])
def test_no_rows_hold_nothing(tokens, method):
    packed, none = PackedStream(Stream(open_dataset(tokens)), 32, method), np.empty(0, dtype=np.int64)
    assert packed.shards(none) == list(packed.samples(none)) == []
    assert not len(packed.plan.take(none).document)
