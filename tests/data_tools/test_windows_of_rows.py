"""Packed rows of large data: fetched once by a cluster, the same everywhere, and runs of before go on as they began."""

import numpy as np
import pytest
from bad_server import bad_server
from small_data import write_tokens

from benchmarks.stream_scale import measure_fetched, write_index
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order import window_order
from data_tools.order.packing import WINDOW
from data_tools.order.shuffle import ORDER_VERSION
from data_tools.order.window_order import WINDOWS_VERSION
from data_tools.storage.segments import FetchOptions
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


def tokens_of(sample, _):
    return {name: sample[name] for name in ("tokens", "document_ids", "position_ids")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1.6 MB of documents of 0 to 260 tokens and some of 9,000, whose blocks have CRCs, in shards of 300."""
    lengths = np.random.default_rng(0).integers(0, 260, 800)
    lengths[50::200] = 9_000
    return write_tokens(tmp_path_factory.mktemp("windows") / "data", lengths.tolist(), per_shard=300)


@pytest.fixture
def pack(monkeypatch):
    """Rows of 256 tokens in windows of 60 kB, of which 6 are lanes at a time."""
    monkeypatch.setattr(window_order, "WINDOW_BYTES", 60_000)

    def pack(place, method=None, memory=400_000):
        packed = PackedStream(Stream(open_dataset(place), seed=5, memory=memory), 256, method)
        assert (
            packed.version == WINDOWS_VERSION and packed.order.layout.lanes == 6 and packed.order.blocks > 2
        )
        return packed

    return pack


def test_data_that_are_shuffled_globally_keep_their_order(folder):
    assert PackedStream(Stream(open_dataset(folder)), 256).version == ORDER_VERSION


def read_all(stream, ranks, node_size, batch, folder_of_node, monkeypatch, place):
    """{position: row} of all whole steps of an epoch, as the ranks of nodes with a cache each read them."""
    taken = {}
    for rank in range(ranks):
        monkeypatch.setenv("MASQUERADE_CACHE", str(folder_of_node(rank // node_size)))
        own = stream(place)
        loader = Loader(
            own, tokens_of, global_batch_size=batch, rank=rank, world_size=ranks, node_size=node_size
        )
        for position in range(0, own.samples_per_epoch // batch * batch, batch):
            mine = loader.micro_positions(position)[0]
            foreseen = {segment.name for _, segment, _ in own.needs(mine)}
            before = set(own.dataset.store.cache().folder.glob("0*"))
            taken |= dict(zip(mine.tolist(), own.samples(mine), strict=True))
            assert {
                path.name for path in set(own.dataset.store.cache().folder.glob("0*")) - before
            } <= foreseen
        loader.close()
    return taken


@pytest.mark.parametrize("method", ["best_fit", "cut"])
@pytest.mark.parametrize(("ranks", "node_size"), [(4, 2), (3, 1)])
def test_nodes_fetch_remote_windows_once_and_read_what_lies_in_them(
    folder, pack, tmp_path, monkeypatch, method, ranks, node_size
):
    reference = pack(folder, method)
    with bad_server(folder) as (url, server):
        taken = read_all(
            lambda place: pack(place, method), ranks, node_size, 12, lambda node: tmp_path / f"node{node}", monkeypatch,
            url,
        )  # fmt: skip
        asked = [tuple(map(int, r[6:].split("-"))) for _, r in server.requests if r]
    for position, expected in enumerate(reference.samples(np.arange(len(taken)))):
        assert np.array_equal(taken[position]["tokens"], expected["tokens"])
        assert taken[position]["documents"] == expected["documents"]
    fetched, data = sum(last - first + 1 for first, last in asked), reference.dataset.manifest.bytes.sum()
    if ranks == 4:  # two nodes; of six lanes and fewer, three are handed many rows
        assert fetched <= 1.05 * data


@pytest.mark.parametrize("mean", [550, 4_000, 400_000])
def test_a_cluster_fetches_packed_rows_once(tmp_path, monkeypatch, mean):
    """With a fortieth of the lanes and nodes that a large one has."""
    lengths = (
        np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1, int(5e8 / (2 * mean + 900))).astype(int) + 1
    )
    write_index(tmp_path, lengths, len(lengths) // 3)
    dataset = open_dataset(tmp_path, fetching=FetchOptions(cache_folder=tmp_path))
    packed = PackedStream(Stream(dataset, memory=(8 << 30) // 40), 1024)
    assert packed.efficiency > 0.995
    for nodes in (1, 10, 12):
        share, requests = measure_fetched(packed, nodes, nodes * 16)
        assert 0.95 < share <= 1.05
        assert share * float(dataset.manifest.bytes.sum()) / requests > 100_000


def test_a_run_of_the_first_version_goes_on_as_it_began(folder, pack):
    old = PackedStream(Stream(open_dataset(folder), seed=5, memory=400_000), 256, window=WINDOW)
    loader = Loader(old, tokens_of, global_batch_size=8)
    steps = iter(loader)
    next(steps)
    state = loader.state_dict()
    assert state["order"] == ORDER_VERSION and state["packing"]["window"] == WINDOW
    expected = [next(steps) for _ in range(3)]
    other = Loader(pack(folder), tokens_of, global_batch_size=8)
    other.load_state_dict(state)
    for step, found in zip(expected, other, strict=False):
        assert found.keys == step.keys and found.epoch == step.epoch
        for name, value in step.micro_batches[0].items():
            assert np.array_equal(found.micro_batches[0][name], value)
    assert other.state_dict()["packing"] == state["packing"]


def test_a_mixture_of_the_first_version_goes_on_as_it_began(folder, pack):
    def mix(window=None):
        streams = [
            PackedStream(Stream(open_dataset(folder), i, memory=500_000), 256, window=window)
            for i in range(2)
        ]
        streams.append(PackedStream(Stream(open_dataset(folder), 2), 256))
        return Mixture(dict(zip("abc", streams, strict=True)), {"a": 1, "b": 2, "c": 3}, by="token")

    old, new = mix(WINDOW), mix()
    new.adopt(old.state())
    assert new.state() == old.state() and new.samples_per_epoch == old.samples_per_epoch
    positions = np.arange(200)
    assert [r["__key__"] for r in new.samples(positions)] == [r["__key__"] for r in old.samples(positions)]


def test_an_order_that_is_not_known_is_refused(folder, pack):
    loader = Loader(pack(folder), tokens_of, global_batch_size=8)
    with pytest.raises(UserError, match="order=3: the saved state"):
        loader.load_state_dict({**loader.state_dict(), "order": 3})


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (8, 1)])
def test_rows_do_not_depend_on_ranks_and_workers_and_resume_anywhere(folder, pack, ranks, workers):
    reference = pack(folder)
    shares, states = [], []
    for rank in range(ranks):
        loader = Loader(
            pack(folder), tokens_of, global_batch_size=16, rank=rank, world_size=ranks, workers=workers
        )
        loader.load_state_dict({"position": 32, **reference.state()})
        shares.append([step.keys[0] for _, step in zip(range(2), loader, strict=False)])
        states.append(loader.state_dict())
        loader.close()
    assert all(state == {"position": 64, **reference.state()} for state in states)
    keys = [shares[i % ranks][step][i // ranks] for step in range(2) for i in range(16)]
    assert keys == [row["__key__"] for row in reference.samples(np.arange(32, 64))]


def test_a_selection_of_remote_data_has_the_same_rows(folder, pack, tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path))
    chosen = np.arange(len(open_dataset(folder)))[::-1]
    local = PackedStream(Stream(open_dataset(folder).select(chosen), memory=500_000), 256)
    with bad_server(folder) as (url, _):
        remote = PackedStream(Stream(open_dataset(url).select(chosen), memory=500_000), 256)
        positions = np.arange(40)
        assert local.version == WINDOWS_VERSION and any(remote.needs(positions))
        for found, expected in zip(remote.samples(positions), local.samples(positions), strict=True):
            assert np.array_equal(found["tokens"], expected["tokens"])
