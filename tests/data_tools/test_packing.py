import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import best_fit_rows, cut_rows, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream

document_lengths = st.lists(st.integers(0, 70), min_size=1, max_size=80).filter(
    lambda lengths: sum(lengths) > 0
)


PLANS = {
    "best fit": lambda n, row: best_fit_rows(n, row, window=16),
    "cut": cut_rows,
}


@pytest.mark.parametrize("plan_rows", PLANS.values(), ids=PLANS.keys())
@given(lengths=document_lengths, row=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_every_token_stands_in_exactly_one_row_and_no_row_overflows(plan_rows, lengths, row):
    plan = plan_rows(np.array(lengths), row)
    seen = [np.zeros(n, dtype=int) for n in lengths]
    for document, start, size in zip(plan.document, plan.start, plan.size, strict=True):
        seen[document][start : start + size] += 1
    assert all((counts == 1).all() for counts in seen)
    filled = np.add.reduceat(plan.size, plan.row_start[:-1])
    assert plan.row_start[0] == 0
    assert plan.row_start[-1] == len(plan.size)
    assert filled.max() <= row
    assert filled.min() > 0


def test_cut_rows_are_full_but_the_last():
    plan = cut_rows(np.array([10, 0, 7, 30]), 8)
    assert np.add.reduceat(plan.size, plan.row_start[:-1]).tolist() == [8, 8, 8, 8, 8, 7]


DISTRIBUTIONS = {
    "ordinary text": lambda rng: rng.lognormal(5, 0.8, 10_000).astype(int) + 1,
    "short": lambda rng: rng.integers(5, 40, 10_000),
    "all alike": lambda rng: np.full(5_000, 300),
    "uniform": lambda rng: rng.integers(1, 1024, 8_000),
    "longer than half a row": lambda rng: rng.integers(520, 1024, 5_000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_best_fit_fills_rows_whatever_the_lengths(name):
    lengths = DISTRIBUTIONS[name](np.random.default_rng(0))
    assert best_fit_rows(lengths, 1024).efficiency > 0.99


def test_best_fit_cuts_few_documents_of_ordinary_text():
    lengths = DISTRIBUTIONS["ordinary text"](np.random.default_rng(0))
    plan = best_fit_rows(lengths, 1024)
    needed = -(-lengths // 1024)  # pieces that a row's length makes necessary
    assert (np.bincount(plan.document) > needed).mean() < 0.02


def test_state_of_the_union_paragraphs_fill_rows_of_1024_tokens():
    from data_tools.tokenizer import texts_of, train_tokenizer

    texts = list(texts_of(open_dataset("sample:sotu")))
    tokenizer = train_tokenizer(texts[:1000], 2048)
    lengths = np.array([len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(texts)])
    assert best_fit_rows(lengths, 1024).efficiency >= 0.99


@pytest.mark.parametrize("with_length, method", [(True, "best_fit"), (False, "cut")])
def test_packed_rows_hold_the_documents_they_name(tmp_path, with_length, method):
    lengths = np.random.default_rng(1).integers(1, 60, 130).tolist()
    dataset = open_dataset(write_tokens(tmp_path, lengths, with_length=with_length))
    packed = PackedStream(Stream(dataset, seed=3), length=32)
    assert packed.method == method
    tokens_seen = []
    for position in range(packed.samples_per_epoch):
        row = packed.sample(position)
        assert row["tokens"].shape == row["document_ids"].shape == row["position_ids"].shape == (32,)
        assert row["tokens"].dtype == np.int32
        for number, (key, start, size) in enumerate(row["documents"], start=1):
            here = row["document_ids"] == number
            expected = np.arange(start, start + size) + 1000 * int(key[3:])
            assert row["tokens"][here].tolist() == expected.tolist()
            assert row["position_ids"][here].tolist() == list(range(size))
        assert (row["tokens"][row["document_ids"] == 0] == 0).all()
        tokens_seen += row["tokens"][row["document_ids"] > 0].tolist()
    assert sorted(tokens_seen) == sorted(1000 * i + j for i, n in enumerate(lengths) for j in range(n))


def test_next_epoch_has_the_same_rows_in_another_order(tmp_path):
    dataset = open_dataset(write_tokens(tmp_path, [20] * 200))
    packed = PackedStream(Stream(dataset, seed=0), length=40)
    epochs = [
        [packed.sample(e * packed.samples_per_epoch + p)["__key__"] for p in range(packed.samples_per_epoch)]
        for e in range(2)
    ]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
