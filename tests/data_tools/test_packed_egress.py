"""Packed rows of remote documents: what a node fetches for its rows, and for those that it takes over from others."""

import numpy as np
import pytest
from bad_server import bad_server
from small_data import write_tokens

from benchmarks.stream_scale import measure_packed_egress
from data_tools.dataset.open import open_dataset
from data_tools.order import shuffle
from data_tools.order.packing import find_stretches
from data_tools.stream import packed
from data_tools.stream.loader import Loader
from data_tools.stream.packed import PackedStream, stretch_documents
from data_tools.stream.samples import Stream

WINDOW, RANKS, NODE_SIZE, BATCH = 16, 6, 2, 12


def pack(place):
    """Rows in 6 lanes of chunks of a few rows."""
    stream = PackedStream(Stream(open_dataset(place), memory=200_000), 256, window=WINDOW)
    assert stream.order.layout.lanes == 6 and stream.order.layout.chunk > 4 and stream.order.lane_chunks
    return stream


def test_nodes_fetch_stretches_of_windows_for_their_rows_and_single_documents_for_others(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shuffle, "CHUNK_BYTES", 32_000)
    monkeypatch.setattr(packed, "STRETCH_BYTES", 16_000)
    lengths = np.random.default_rng(0).integers(20, 300, 250).tolist()
    folder = write_tokens(tmp_path / "data", lengths, per_shard=1000)
    reference = pack(folder)
    taken, fetched, requests = {}, 0, 0
    with bad_server(folder) as (url, server):
        for rank in range(RANKS):
            monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / f"node{rank // NODE_SIZE}"))
            stream = pack(url)
            loader = Loader(stream, lambda s, _: s, global_batch_size=BATCH, rank=rank, world_size=RANKS,
                            node_size=NODE_SIZE)  # fmt: skip
            server.requests.clear()
            for position in range(0, stream.samples_per_epoch // BATCH * BATCH, BATCH):
                mine = loader.micro_positions(position)[0]
                foreseen = {s.name for _, s, _ in stream.needs(mine)}
                before = stream.dataset.store.cache().fetched
                taken |= dict(zip(mine.tolist(), stream.samples(mine), strict=True))
                assert stream.dataset.store.cache().fetched - before <= len(foreseen)
            asked = [tuple(map(int, r[6:].split("-"))) for _, r in server.requests if r]
            fetched += sum(last - first + 1 for first, last in asked)
            requests += len(asked)
    for position, row in taken.items():
        expected = reference.sample(position)
        assert np.array_equal(row["tokens"], expected["tokens"]) and row["documents"] == expected["documents"]
    assert sorted(taken) == list(range(len(taken)))
    sizes = reference.dataset.valid_sidecar(0).size.astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    stretch = stretch_documents(reference.dataset.sample_bytes, WINDOW)
    told = measure_packed_egress(
        reference.order, reference.plan, ends, RANKS // NODE_SIZE, BATCH, stretch, WINDOW
    )
    # a node's cache keeps here what the simulation fetches anew for each turn of the lanes
    assert ends[-1] < fetched <= told[0] * ends[-1] and requests <= told[1]
    assert told[0] < 2.5


@pytest.mark.parametrize("stretch", [3, 4, 16])
def test_stretches_are_the_windows_cut_into_parts_and_where_shards_end(stretch):
    starts = np.array([0, 21, 50])
    stops = np.array([21, 50, 61])
    documents = np.arange(61)
    shard = np.searchsorted(stops, documents, side="right")
    first, stop = find_stretches(documents, starts[shard], stops[shard], stretch, WINDOW)
    assert ((first <= documents) & (documents < stop) & (stop - first <= stretch)).all()
    assert (first // WINDOW == (stop - 1) // WINDOW).all()
    assert ((first >= starts[shard]) & (stop <= stops[shard])).all()
    runs = sorted(set(zip(first.tolist(), stop.tolist(), strict=True)))
    assert [i for a, b in runs for i in range(a, b)] == documents.tolist()
