"""The order: every epoch visits every sample once, whatever the layout."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.order.permutation import derive_key, permute
from data_tools.order.shuffle import Layout, Order, choose_layout

layouts = st.builds(Layout, st.sampled_from([1, 2, 4, 6, 12]), st.integers(1, 20), st.integers(1, 5))
shard_counts = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)
SMALL = [5, 3, 8, 6, 10, 9, 0, 4, 7, 2, 1, 11]
LANED = [8, 11, 16, 10, 6, 14, 18, 13, 17, 15, 7, 9, 5, 0, 4, 1, 3, 2, 19, 12]


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(counts=shard_counts, layout=layouts, seed=st.integers(0, 9), epoch=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_visits_every_sample_once(counts, layout, seed, epoch):
    order = Order(np.array(counts), layout, seed)
    visited = order.epoch_indices(np.arange(order.samples), epoch)
    assert np.array_equal(np.sort(visited), np.arange(order.samples))


@given(counts=shard_counts, layout=layouts, start=st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_a_position_does_not_depend_on_what_is_asked_with_it(counts, layout, start):
    order = Order(np.array(counts), layout, seed=1)
    positions = np.arange(start, start + 50)
    together = order.indices(positions)[1]
    alone = [int(order.indices(np.array([p]))[1][0]) for p in positions]
    assert together.tolist() == alone


@given(counts=shard_counts, layout=layouts)
@settings(max_examples=60, deadline=None)
def test_chunk_is_a_contiguous_run_within_one_shard_unless_virtual(counts, layout):
    order = Order(np.array(counts), layout, seed=0)
    ends = np.cumsum(counts)
    for number in range(sum(c // layout.chunk for c in counts)):
        samples = order.chunk_samples(np.full(layout.chunk, number), np.arange(layout.chunk))
        assert np.array_equal(samples, np.arange(samples[0], samples[0] + layout.chunk))
        assert np.searchsorted(ends, samples[0], "right") == np.searchsorted(ends, samples[-1], "right")


def test_epochs_and_seeds_differ():
    counts = np.array([500])
    layout = Layout(4, 10, 2)
    a = Order(counts, layout, seed=0).epoch_indices(np.arange(500), 0)
    b = Order(counts, layout, seed=0).epoch_indices(np.arange(500), 1)
    c = Order(counts, layout, seed=1).epoch_indices(np.arange(500), 0)
    assert (a != b).mean() > 0.9
    assert (a != c).mean() > 0.9


def test_the_order_is_the_one_we_promised():
    """Frozen values: a change of these breaks the resumption of every run in the world (raise ORDER_VERSION)."""
    small = Order(np.array([12]), Layout(1, 1, 1), seed=0).epoch_indices(np.arange(12), 0).tolist()
    laned = Order(np.array([9, 4, 7]), Layout(2, 3, 2), seed=3).epoch_indices(np.arange(20), 1).tolist()
    assert small == SMALL
    assert laned == LANED


def test_permutation_looks_uniform():
    """Each of 50 elements lands in each slot about equally often over 4,000 keys (chi-square, 5 sigma)."""
    n, keys = 50, 4000
    table = np.zeros((n, n))
    for key in range(keys):
        table[np.arange(n), permute(np.arange(n), n, derive_key(key))] += 1
    expected = keys / n
    chi2 = ((table - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def test_lanes_mix_shards_within_a_batch():
    """data.md's figure: 1,024 shards × 2,048 samples, lanes 64, c 64, G 16 → 368 effective shards a batch."""
    order = Order(np.full(1024, 2048), Layout(64, 64, 16), seed=0)
    effective = []
    for step in range(0, 400, 20):
        shards = order.epoch_indices(np.arange(step * 1024, (step + 1) * 1024), 0) // 2048
        share = np.bincount(shards, minlength=1024) / 1024
        effective.append(1 / (share**2).sum())
    assert np.mean(effective) > 340


@pytest.mark.parametrize("samples, sample_bytes", [(1000, 100.0), (10**9, 1e5), (10**6, 1e6), (5, 1e12)])
def test_layout_respects_the_memory_allowed(samples, sample_bytes):
    memory = 1 << 30
    layout = choose_layout(samples, sample_bytes, memory)
    if layout.lanes * layout.chunk * layout.group > 1:
        assert layout.lanes * layout.chunk * layout.group * sample_bytes <= max(memory, sample_bytes)


def test_a_billion_samples_in_a_hundred_thousand_shards_open_at_once():
    counts = np.full(100_000, 10_000)
    begin = time.process_time()
    order = Order(counts, choose_layout(10**9, 1e5), seed=0)
    assert time.process_time() - begin < 1.0
    positions = np.arange(123_456_789, 123_456_789 + 100_000)
    begin = time.process_time()
    order.indices(positions)
    assert (time.process_time() - begin) / len(positions) < 10e-6
