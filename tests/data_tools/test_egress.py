"""A cluster fetches the data once: which rank takes which position of a step, and what its node fetches for it."""

import numpy as np
import pytest
from bad_server import bad_server
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_images

from benchmarks.stream_scale import measure_egress
from data_tools.dataset.open import open_dataset
from data_tools.order.sharing import FREE, find_runs, share_equally, share_step
from data_tools.order.shuffle import Layout, Order
from data_tools.storage.objects import Retry
from data_tools.storage.segments import FetchOptions
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream

FAST = FetchOptions(retry=Retry(patience=2.0, timeout=0.5, first_wait=0.01, longest_wait=0.05))


@pytest.mark.parametrize("nodes", [7, 16, 64, 128, 256, 384, 400, 500, 512])
def test_a_cluster_fetches_the_data_once(nodes):
    """Nodes of 8 GPUs with one sample each a step, or more; 960 lanes of chunks of 83 samples (100 kB)."""
    order = Order(np.array([10_000, 3_000, 27_017, 40_000]), Layout(960, 83, 1), seed=3)
    assert measure_egress(order, nodes, nodes * (8 if nodes > 100 else 64))[0] <= 1.05


def test_what_is_simulated_is_what_the_nodes_do():
    order = Order(np.array([90, 61]), Layout(12, 4, 2), seed=1)
    ranges = set()
    for start in range(0, order.samples, 15):
        step = np.arange(start, start + 15)
        takes = share_equally(find_runs(order, step, 5).home, 5)
        for node in range(5):
            mine = find_runs(order, step[takes == node], 5, node)
            ranges |= {
                (node, first, stop)
                for epoch, first, stop in zip(mine.epoch, mine.first, mine.stop, strict=True)
                if epoch == 0
            }
    samples = sum(stop - first for _, first, stop in ranges)
    assert measure_egress(order, 5, 15) == (samples / order.samples, len(ranges))


orders = st.builds(
    Order,
    st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0).map(np.array),
    st.builds(Layout, st.sampled_from([1, 2, 4, 6, 12]), st.integers(1, 20), st.integers(1, 4)).filter(
        lambda layout: layout.turn
    ),
    st.integers(0, 9),
)


@given(
    order=orders,
    nodes=st.integers(1, 9),
    node_size=st.integers(1, 4),
    quota=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_the_ranks_of_a_step_take_each_position_once_and_equally_many(order, nodes, node_size, quota, data):
    world = nodes * node_size
    step = np.arange(quota * world) + data.draw(st.integers(0, 500))
    home = data.draw(st.sampled_from([None, np.full_like(step, FREE), find_runs(order, step, nodes).home]))
    shares = [share_step(step, home, rank, world, node_size) for rank in range(world)]
    assert [len(share) for share in shares] == [quota] * world
    assert sorted(np.concatenate(shares).tolist()) == step.tolist()
    if home is None:
        assert all((share % world == rank).all() for rank, share in enumerate(shares))


@given(order=orders, nodes=st.integers(1, 60), epoch=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_what_the_nodes_own_is_every_sample_once_in_runs_of_one_shard(order, nodes, epoch):
    positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
    runs = find_runs(order, positions, nodes)
    assert np.array_equal(runs.index, order.indices(positions)[1])
    owned = sorted(set(zip(runs.first.tolist(), runs.stop.tolist(), strict=True)))
    assert [i for first, stop in owned for i in range(first, stop)] == list(range(order.samples))
    assert ((runs.first <= runs.index) & (runs.index < runs.stop)).all()
    ends = np.cumsum(order._shard_counts)
    assert (np.searchsorted(ends, runs.first, "right") == np.searchsorted(ends, runs.stop - 1, "right")).all()
    assert (runs.stop - runs.first <= order.layout.chunk).all()
    for node in range(min(nodes, 3)):
        own = find_runs(order, positions, nodes, node)
        home = own.home == node
        assert np.array_equal(own.first[home], runs.first[home])
        assert np.array_equal(own.stop[~home] - own.first[~home], np.ones(np.count_nonzero(~home)))


@pytest.mark.parametrize(("ranks", "node_size"), [(8, 4), (6, 2), (4, 1)])
def test_loaders_on_nodes_fetch_each_byte_once_and_take_the_reference_sequence(
    tmp_path, monkeypatch, ranks, node_size
):
    folder = write_images(tmp_path / "data", samples=122, per_shard=31)  # with chunks that shards do not fill
    reference = Stream(open_dataset(folder), layout=Layout(4, 5, 2))
    taken: dict[int, str] = {}
    requests: list[tuple[str, str | None]] = []
    with bad_server(folder) as (url, server):
        for rank in range(ranks):
            monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / f"node{rank // node_size}"))
            stream = Stream(open_dataset(url, fetching=FAST), layout=Layout(4, 5, 2))
            assert not stream.keys_repeat  # told by the heads of eight samples, fetched once for each node
            heads = [asked for _, asked in server.requests if asked]
            assert len(heads) == (8 if rank % node_size == 0 else 0)
            server.requests.clear()
            loader = Loader(
                stream, lambda s, _: {"n": s["json"]["number"]}, global_batch_size=24, rank=rank, world_size=ranks,
                node_size=node_size,
            )  # fmt: skip
            for position in range(0, 120, 24):
                mine = loader.micro_positions(position)[0]
                assert len(mine) == 24 // ranks
                keys = [sample["__key__"] for sample in stream.samples(mine)]
                assert not set(mine.tolist()) & set(taken)
                taken |= dict(zip(mine.tolist(), keys, strict=True))
            requests += server.requests
            server.requests.clear()
        ranges = [tuple(map(int, asked[6:].split("-"))) for _, asked in requests if asked]
    assert [taken[p] for p in range(120)] == [reference.sample(p)["__key__"] for p in range(120)]
    bytes_ = sum(int(s) for shard in range(4) for s in reference.dataset.valid_sidecar(shard).size)
    assert sum(last - first + 1 for first, last in ranges) <= 1.05 * bytes_


def test_ranks_that_make_no_whole_nodes_are_refused(tmp_path):
    stream = Stream(open_dataset(write_images(tmp_path, samples=6)))
    with pytest.raises(ValueError, match="node_size=4: 6 ranks"):
        Loader(stream, lambda s, _: s, global_batch_size=6, world_size=6, node_size=4)
