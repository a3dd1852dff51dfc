"""Windows of equally many tokens: every token in one row, and every window as many rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.order import packing
from data_tools.order.token_windows import TOKEN_WINDOWS, count_window_tokens, plan_token_windows
from data_tools.stream import packing_table
from data_tools.stream.packing_table import find_row_plan

LENGTHS = np.random.default_rng(0).integers(0, 300, 2_500).astype(np.uint32)


@given(
    lengths=st.lists(
        st.one_of(st.integers(0, 3), st.integers(0, 60), st.integers(0, 900)), min_size=1
    ).filter(sum),
    length=st.integers(1, 40),
    rows=st.integers(1, 9),
    block=st.integers(1, 50),
    memory=st.sampled_from([1, 3000, 1 << 28]),
)
@settings(max_examples=150, deadline=None)
def test_every_token_stands_in_one_row_of_its_window(lengths, length, rows, block, memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_BYTES", memory)
        blocks = (np.array(lengths[i : i + block]) for i in range(0, len(lengths), block))
        plan = plan_token_windows(blocks, length, rows)
    capacity, starts = count_window_tokens(rows, length), np.cumsum(lengths) - lengths
    taken = plan.take(np.arange(plan.rows))
    token = starts[taken.document] + taken.start
    held = np.concatenate([np.arange(at, at + size) for at, size in zip(token, taken.size, strict=True)])
    assert np.array_equal(np.sort(held), np.arange(sum(lengths)))
    assert (taken.start + taken.size <= np.array(lengths)[taken.document]).all()
    filled = np.add.reduceat(taken.size, taken.row_start[:-1])
    assert filled.min() > 0 and filled.max() <= length
    window = np.repeat(np.arange(plan.rows) // rows, np.diff(taken.row_start))
    assert (token // capacity == window).all() and ((token + taken.size - 1) // capacity == window).all()
    windows = -(-sum(lengths) // capacity)
    document, used = plan.begins(np.arange(windows + 1) * rows)
    begins = np.append(starts, sum(lengths))[np.minimum(document, len(lengths))] + used
    assert begins.tolist() == [min(w * capacity, sum(lengths)) for w in range(windows + 1)]


DISTRIBUTIONS = {
    "text": lambda rng: rng.lognormal(5.8, 1, 4_000),
    "alike": lambda rng: np.full(1_500, 300),
    "longer than windows": lambda rng: rng.lognormal(12, 1, 20),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_are_full_whatever_the_lengths(name):
    lengths = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(int) + 1
    plan = plan_token_windows([lengths], 1024, 90)
    assert (plan.columns["rows"][:-1] == 90).all()
    full = plan.rows // 90 * 90
    assert plan.take(np.arange(full)).efficiency > 0.995


def find(folder, lengths=LENGTHS):
    packing_table.read_row_plan.cache_clear()  # as another process begins

    def read(first, last):
        return lengths[first:last]

    return find_row_plan(read, len(lengths), "these", 64, TOKEN_WINDOWS, lambda n: n // 9_000, folder)


def test_a_table_is_the_same_on_disk_and_in_any_blocks(tmp_path, monkeypatch):
    plans = [plan_token_windows([LENGTHS], 64, int(LENGTHS.sum()) // 9_000)]
    monkeypatch.setattr(packing_table, "BLOCK_DOCUMENTS", 70)
    plans += [find(tmp_path), find(tmp_path)]
    assert len(list(tmp_path.glob(".packing/*/plan.json"))) == 1
    assert isinstance(plans[2].columns["document"], np.memmap)
    whole = [plan.take(np.arange(plan.rows)) for plan in plans]
    for plan, rows in zip(plans, whole, strict=True):
        assert plan.window == plans[0].window and plan.tokens == LENGTHS.sum()
        for name in ("row_start", "document", "start", "size"):
            assert np.array_equal(getattr(rows, name), getattr(whole[0], name))


@pytest.mark.parametrize("mean, most", [(5.5, 13), (7.5, 16)], ids=["text", "longer than rows"])
def test_a_table_takes_few_bytes_a_document(tmp_path, mean, most):
    lengths = np.random.default_rng(0).lognormal(mean, 1, 3000).astype(np.uint32) + 1
    find_row_plan(
        lambda first, last: lengths[first:last],
        len(lengths),
        "these",
        1024,
        TOKEN_WINDOWS,
        lambda _: 160,
        tmp_path,
    )
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) <= most * len(lengths)
