"""What is fetched ahead: by bytes, lane after lane, beside other ranks of the node, and kept open while it is used."""

import fcntl
import os
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from bad_server import bad_server
from small_data import write_images, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.order.shuffle import Layout, Order
from data_tools.storage.handles import Recent
from data_tools.storage.objects import Retry
from data_tools.storage.prefetch import ReadAhead, positions_ahead
from data_tools.storage.segments import LOCK_FOLDER, LOCKS, FetchOptions, Segment
from data_tools.stream.samples import Stream

FAST = FetchOptions(retry=Retry(patience=2.0, timeout=0.5, first_wait=0.01, longest_wait=0.05))


class Record:
    """A cache that notes what it is asked for, and takes it all."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def expect(self, segment, position):
        self.asked.append((segment.name, position))
        return True

    def finished(self, segment):
        pass


def test_lanes_come_to_their_next_chunks_in_turn():
    """48 lanes change at the same position; what they change to is asked for evenly, and in time."""
    order, cache, asked = Order(np.array([9600]), Layout(48, 20, 1), 0), Record(), []

    def needs(positions):
        chunks = order.indices(positions)[1] // 20 * 20
        for position, chunk in zip(positions.tolist(), chunks.tolist(), strict=True):
            yield cache, Segment(0, chunk, chunk + 20, 20_000, lambda _: (0, 0)), position

    reader = ReadAhead(needs, 9600, ahead=240, turn=960)
    for position in range(0, 9600 - 1440, 24):
        reader.advance(position, lambda p: p + 24, lambda p: np.arange(p, p + 24))
        asked.append(len(cache.asked))
        used = {
            name for _, segment, _ in needs(np.arange(position, position + 24)) for name in [segment.name]
        }
        assert used <= {name for name, _ in cache.asked}
    a_step = np.diff(asked)[40:]  # a turn has 40 steps and 48 chunks: the first two are asked for at once
    assert a_step.max() <= 2
    assert abs(a_step.mean() - 48 / 40) < 0.1
    assert len(cache.asked) == len(set(cache.asked))


@pytest.mark.parametrize(
    ("sample_bytes", "epoch", "positions"),
    [(1e5, 10**9, 10737), (1e3, 10**9, 1073741), (1e8, 50, 1024), (1e3, 60, 1024)],
)
def test_look_ahead_is_so_many_bytes(sample_bytes, epoch, positions):
    assert positions_ahead(sample_bytes, epoch) == positions


def test_a_rank_fetches_on_while_others_of_its_node_are_at_the_same_segments(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    with bad_server(write_images(tmp_path / "data", samples=60, per_shard=60)) as (url, _):
        store = open_dataset(url, fetching=FAST)._store
        store.use_segments(5)
        cache, segments = store.cache(), [store.segment(0, number) for number in range(0, 60, 5)]
        held = []
        for segment in segments[:8]:  # as many as there are threads
            slot = str(zlib.crc32(segment.name.encode()) % LOCKS)
            held.append(os.open(cache.folder / LOCK_FOLDER / slot, os.O_CREAT))
            fcntl.flock(held[-1], fcntl.LOCK_EX)
        for position, segment in enumerate(segments):
            assert cache.expect(segment, position)
        deadline = time.monotonic() + 5
        while len(cache._entries()) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {path.name for *_, path in cache._entries()} == {segment.name for segment in segments[8:]}
        for handle in held:
            os.close(handle)
        for segment in segments:
            cache.read(segment, segment.start, 10)
        assert len(cache._entries()) == 12
        cache.close()


def test_files_and_sidecars_stay_open_by_the_number_of_lanes(tmp_path):
    stream = Stream(open_dataset(write_tokens(tmp_path, [1] * 600, per_shard=2)), layout=Layout(300, 2, 1))
    for _ in stream.samples(np.arange(300)):
        pass
    store = stream.dataset._store
    assert len(store._files._values) == len(store._sidecars._values) == 300


@pytest.mark.parametrize(("hard", "kept"), [(None, 300), (700, 111)])
def test_a_process_is_allowed_the_open_files_that_it_needs_or_keeps_fewer(tmp_path, hard, kept):
    dataset = write_tokens(tmp_path, [1] * 300, per_shard=1)
    code = f"""
import resource, numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (400, {hard} or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from data_tools.dataset.open import open_dataset
from data_tools.stream.samples import Stream
stream = Stream(open_dataset({str(dataset)!r}))
assert len(list(stream.samples(np.arange(300)))) == 300
print(len(stream.dataset._store._sidecars._values))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(kept)


def test_sidecars_are_fetched_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    under_way, most = [], []

    def take_a_while(name):
        under_way.append(name)
        most.append(len(under_way))
        time.sleep(0.1)
        under_way.remove(name)

    with bad_server(write_tokens(tmp_path / "data", [3] * 16, per_shard=2)) as (url, server):
        dataset = open_dataset(url, fetching=FAST)
        server.next_fault = take_a_while
        assert dataset.lengths.tolist() == [3] * 16
    assert max(most) >= 4


def test_threads_that_want_one_value_make_it_once():
    made, values = [], []

    def make(key):
        time.sleep(0.05)
        made.append(key)
        return object()

    recent = Recent(make, 4)
    threads = [threading.Thread(target=lambda: values.append(recent("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"] and len(set(map(id, values))) == 1


def test_a_sample_that_was_handed_to_a_node_leaves_its_cache_after_use(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    with bad_server(write_images(tmp_path / "data", samples=60, per_shard=20)) as (url, _):
        store = open_dataset(url, fetching=FAST)._store
        store.use_segments(5)
        for segment in (store.segment(0, 7, (7, 8)), store.segment(0, 7)):
            store.cache().read(segment, segment.start, 10)
            store.cache().finished(segment)
        assert [path.name for *_, path in store.cache()._entries()] == [store.segment(0, 7).name]
