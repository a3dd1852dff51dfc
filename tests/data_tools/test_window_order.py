"""The order of rows in windows, and which node fetches what of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.order.sharing import FREE, share_equally
from data_tools.order.window_order import WindowLayout, WindowOrder, choose_window_layout, count_window_rows

orders = st.builds(
    lambda samples, group, blocks, chunk, seed: WindowOrder(samples, WindowLayout(group * blocks, chunk, group), seed),
    st.integers(1, 600), st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.integers(1, 7), st.integers(0, 9),
)  # fmt: skip

ROWS = [20, 25, 22, 29, 18, 24, 21, 27, 19, 26, 23, 28, 13, 7, 15, 10, 12, 6, 17, 11, 14,
        8, 16, 9, 30, 2, 33, 4, 32, 0, 34, 5, 31, 1, 35, 3, 37, 39, 40, 38, 36]  # fmt: skip


@given(order=orders, nodes=st.integers(1, 9), epoch=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_an_epoch_visits_every_row_once_and_one_node_has_each_window(order, nodes, epoch):
    positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
    runs = order.find_runs(positions, nodes)
    assert np.array_equal(np.sort(runs.row), np.arange(order.samples))
    assert np.array_equal(runs.row, order.find_runs(positions, 1).row)  # whoever asks
    assert np.array_equal(runs.home, order.homes(positions, nodes))
    owned = runs.home != FREE
    assert np.count_nonzero(~owned) < order.layout.chunk * order.layout.group
    window = runs.row[owned] // order.layout.chunk
    for first in np.unique(runs.first[owned]):
        here = runs.first[owned] == first
        (many,), (_,) = set(runs.many[owned][here]), set(runs.home[owned][here])
        assert set(window[here]) == set(range(first, first + many))


def test_the_order_is_the_one_we_promised():
    """Frozen values: a change of these breaks the resumption of every run in the world."""
    order = WindowOrder(41, WindowLayout(4, 3, 2), seed=3)
    assert order.indices(np.arange(41, 82))[1].tolist() == ROWS


@pytest.mark.parametrize("nodes", [7, 64, 375, 506])
def test_few_positions_are_handed_on(nodes):
    """In each round of the lanes, of s that are left over, s (n - s) / n."""
    order = WindowOrder(23_040 * 12, WindowLayout(23_040, 12, 8), seed=0)
    batch, away = 8 * nodes, 0
    for start in range(0, order.samples // batch * batch, batch):
        home = order.homes(np.arange(start, start + batch), nodes)
        away += np.count_nonzero(share_equally(home, nodes) != home)
    left = 23_040 % nodes
    assert away <= 1.1 * 12 * left * (nodes - left) / nodes + nodes


def test_a_layout_keeps_within_the_memory():
    assert count_window_rows(tokens=10**9, data_bytes=2 * 10**9, length=1024) == 182
    assert count_window_rows(tokens=10**9, data_bytes=2 * 10**9, length=10**6) == 4
    layout = choose_window_layout(182, 2048)
    assert layout == WindowLayout(23_040, 182, 8) and layout.lanes * layout.chunk * 2048 <= 8 << 30
    assert choose_window_layout(100, 1000.0, memory=650_000) == WindowLayout(6, 100, 2)
