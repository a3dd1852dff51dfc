"""Remote shards: the same samples as local ones, few requests, a bounded cache, and patience with bad servers."""

import gzip
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
from bad_server import bad_server
from small_data import write_images, write_tokens

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.shuffle import Layout
from data_tools.storage.objects import Retry, StorageOptions, redacted
from data_tools.storage.segments import FetchOptions, SegmentCache
from data_tools.stream.loader import Loader
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream
from tests.s3_server import s3_server

FAST = FetchOptions(retry=Retry(patience=2.0, timeout=0.5, first_wait=0.01, longest_wait=0.05))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "data", samples=60, per_shard=20)


def keys_of(dataset):
    return [sample["__key__"] for sample in dataset]


def test_http_gives_the_samples_of_the_folder(folder):
    local = open_dataset(folder)
    with bad_server(folder) as (url, server):
        remote = open_dataset(url, fetching=FAST)
        assert remote.fingerprint == local.fingerprint
        for ours, theirs in zip(local, remote, strict=True):
            assert ours["__key__"] == theirs["__key__"]
            assert np.array_equal(ours["image"], theirs["image"])
        ranges = [name for name, asked in server.requests if asked]
        assert sorted(ranges) == ["000000.tar", "000001.tar", "000002.tar"]  # one range a shard this small


def test_chunks_are_fetched_whole_once_and_in_the_order_of_need(folder):
    with bad_server(folder) as (url, server):
        stream = Stream(open_dataset(url, fetching=FAST), layout=Layout(lanes=2, chunk=5, group=1))
        local = Stream(open_dataset(folder), layout=Layout(lanes=2, chunk=5, group=1))
        assert not stream.keys_repeat  # told by the heads of a few samples
        server.requests.clear()
        loader = Loader(stream, lambda s, r: {"n": s["json"]["number"]}, global_batch_size=4, workers=2)
        remote_keys = [step.keys[0] for _, step in zip(range(15), loader, strict=False)]
        loader.close()
        stream.dataset._store.cache().close()
        expected = Loader(local, lambda s, r: {"n": s["json"]["number"]}, global_batch_size=4)
        assert remote_keys == [step.keys[0] for _, step in zip(range(15), expected, strict=False)]
        ranges = [r for r in server.requests if r[1]]
        assert len(ranges) == len(set(ranges)) == 12


@pytest.mark.parametrize("pace", ["fast", "slow_fetching", "slow_reading"])
def test_cache_is_bounded_and_evicts_what_is_needed_last(folder, monkeypatch, pace):
    """However fetching and reading overtake one another."""
    sizes = [path.stat().st_size for path in folder.glob("*.tar")]
    small = FetchOptions(cache_bytes=sum(sizes) // 3, retry=FAST.retry)
    admit, fetch, entries, finished = (
        getattr(SegmentCache, name) for name in ("_admit", "_fetch", "_entries", "finished")
    )
    bad, admitted, over, judged = [], [], set(), threading.local()
    one_at_a_time = threading.Lock()

    def watch(cache, partial, path, needed_now):
        with one_at_a_time:
            own = partial.stat().st_mtime
            admit(cache, partial, path, needed_now)
            before, kept = judged.entries, {p.name for _, _, p in entries(cache)}
        admitted.append(path.name in kept)
        evicted = {p.name: use for use, _, p in before if p.name not in kept | over}
        bad.extend(name for name, use in evicted.items() if not needed_now and use <= own)

    def remember_entries(cache):
        """What is decided by: other threads say meanwhile that a segment is needed later."""
        judged.entries = entries(cache)
        return judged.entries

    def remember_finished(cache, segment):
        """Removed by its reader, not evicted."""
        over.add(segment.name)
        finished(cache, segment)

    def fetch_late(cache, segment, path, wait=True):
        if pace == "slow_fetching":
            time.sleep(0.002 * (segment.first % 4))  # they come in another order than they were asked for
        return fetch(cache, segment, path, wait)

    monkeypatch.setattr(SegmentCache, "_admit", watch)
    monkeypatch.setattr(SegmentCache, "_entries", remember_entries)
    monkeypatch.setattr(SegmentCache, "finished", remember_finished)
    monkeypatch.setattr(SegmentCache, "_fetch", fetch_late)
    with bad_server(folder) as (url, _):
        stream = Stream(open_dataset(url, fetching=small), layout=Layout(lanes=2, chunk=5, group=1))
        cache = stream.dataset._store.cache()
        loader = Loader(stream, lambda s, r: {"n": s["json"]["number"]}, global_batch_size=4)
        for _, _step in zip(range(15), loader, strict=False):
            assert sum(size for _, size, _ in cache._entries()) <= small.cache_bytes
            time.sleep(0.01 if pace == "slow_reading" else 0)
        cache.close()
    assert not bad
    assert sum(admitted) >= 12


def test_cache_evicts_the_farthest_use_first(folder):
    with bad_server(folder) as (url, _):
        store = open_dataset(url, fetching=FAST)._store
        store.use_segments(5)
        cache = store.cache()
        segments = [store.segment(0, number) for number in (0, 5, 10)]
        for segment in segments:
            cache.read(segment, segment.start, 10)
        for segment, position in zip(segments, (30, 900, 10), strict=True):
            assert cache.expect(segment, position)
        cache.capacity = sum(size for _, size, _ in cache._entries()) + 100
        extra = store.segment(0, 15)
        cache.read(extra, extra.start, 10)
        kept = {path.name for _, _, path in cache._entries()}
        assert kept == {segments[0].name, segments[2].name, extra.name}


def test_read_ahead_does_not_evict_what_is_needed_sooner(folder):
    with bad_server(folder) as (url, _):
        store = open_dataset(url, fetching=FAST)._store
        store.use_segments(5)
        cache = store.cache()
        first, later = store.segment(0, 0), store.segment(0, 5)
        cache.read(first, first.start, 10)
        cache.expect(first, 10)
        cache.capacity = first.size + 10
        cache.expect(later, 500)
        cache.close()
        assert [path.name for _, _, path in cache._entries()] == [first.name]


@pytest.mark.parametrize(
    "faults", [[503, 503, 429], ["drop", "drop"], ["short", "short"], ["stall"], [500, "drop", "short"]]
)
def test_passing_faults_cost_nothing(folder, faults):
    with bad_server(folder) as (url, server):
        server.faults["000001.tar"] = list(faults)
        server.faults["000000.tar.sidecar"] = [503]
        server.faults["manifest.json"] = ["drop"]
        assert keys_of(open_dataset(url, fetching=FAST)) == [f"{i:06d}" for i in range(60)]


def test_bits_flipped_on_the_way_are_fetched_again(folder):
    with bad_server(folder) as (url, server):
        server.faults["000001.tar"] = ["flip"]
        assert keys_of(open_dataset(url, fetching=FAST)) == [f"{i:06d}" for i in range(60)]


def test_lasting_outage_stops_after_the_patience_and_names_the_url(folder):
    with bad_server(folder) as (url, server):
        dataset = open_dataset(url, fetching=FAST)
        server.faults["000000.tar"] = 503
        with pytest.raises(UserError, match=r"000000\.tar: no answer for 2 s \(HTTP 503\)"):
            dataset[0]


@pytest.mark.parametrize("fault", [404, "truncate", "short", "html"])
def test_a_shard_that_is_gone_or_cut_costs_its_own_samples_only(folder, fault):
    with bad_server(folder) as (url, server):
        server.faults["000001.tar"] = fault
        dataset = open_dataset(url, fetching=FAST)
        good, bad = [], []
        for i in range(60):
            try:
                good.append(dataset[i]["__key__"])
            except DamagedSampleError as error:
                assert error.shard == "000001.tar"
                bad.append(i)
        assert [f"{i:06d}" for i in range(60) if i not in bad] == good
        assert set(bad) <= set(range(20, 40))
        assert len(bad) == {404: 20, "truncate": 10, "short": 10, "html": 20}[fault]


def test_server_without_ranges_sends_each_shard_once(folder):
    with bad_server(folder) as (url, server):
        server.ranges = False
        dataset = open_dataset(url, fetching=FAST)
        assert keys_of(dataset) == [f"{i:06d}" for i in range(60)]
        assert keys_of(dataset) == [f"{i:06d}" for i in range(60)]
        assert len([name for name, asked in server.requests if name.endswith(".tar") and not asked]) == 3


def test_tars_without_a_manifest_are_indexed_over_http(folder):
    with bad_server(folder) as (url, _):
        dataset = open_dataset([f"{url}/{i:06d}.tar" for i in range(3)], fetching=FAST)
        assert keys_of(dataset) == [f"{i:06d}" for i in range(60)]


def test_gzipped_tars_are_unpacked_whole(folder, tmp_path):
    for path in sorted(folder.glob("*.tar")):
        (tmp_path / "gz").mkdir(exist_ok=True)
        (tmp_path / "gz" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert keys_of(open_dataset(tmp_path / "gz")) == [f"{i:06d}" for i in range(60)]
    with bad_server(tmp_path / "gz") as (url, _):
        assert len(open_dataset(f"{url}/000000.tar.gz")) == 20


def test_gzip_bombs_and_damaged_gzip_are_refused(tmp_path):
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    with pytest.raises(UserError, match="unpacks to more than"):
        open_dataset(tmp_path / "bomb.tar.gz")
    (tmp_path / "torn.tar.gz").write_bytes(gzip.compress(bytes(10240))[:-9])
    with pytest.raises(UserError, match="not a usable gzipped tar"):
        open_dataset(tmp_path / "torn.tar.gz")


@pytest.mark.parametrize(
    "name, message",
    [("nothing/", "no manifest there"), ("nothing.tar", "cannot be read"), ("page.tar", "not a usable tar")],
)
def test_urls_of_nothing_are_one_line(folder, name, message):
    (folder / "page.tar").write_text("<!DOCTYPE html>" * 100)
    with bad_server(folder) as (url, _), pytest.raises(UserError, match=message):
        open_dataset(f"{url}/{name}", fetching=FAST)


def test_changed_remote_data_are_noticed(folder):
    with bad_server(folder) as (url, _):
        before = open_dataset(url, fetching=FAST)
        assert len(keys_of(before)) == 60
        shutil.rmtree(folder)
        write_tokens(folder, [5] * 40, per_shard=20)
        after = open_dataset(url, fetching=FAST)
        assert after.fingerprint != before.fingerprint
        assert keys_of(after) == [f"doc{i:05d}" for i in range(40)]


def test_a_sidecar_of_other_data_is_refused(folder):
    shutil.copy(folder / "000001.tar.sidecar", folder / "000000.tar.sidecar")
    with bad_server(folder) as (url, _), pytest.raises(UserError, match="not the sidecar"):
        open_dataset(url, fetching=FAST)[0]


def test_packed_rows_are_the_same_over_http(tmp_path):
    write_tokens(tmp_path / "t", np.random.default_rng(0).integers(1, 40, 120).tolist())
    local = PackedStream(Stream(open_dataset(tmp_path / "t")), 32)
    with bad_server(tmp_path / "t") as (url, _):
        remote = PackedStream(Stream(open_dataset(url, fetching=FAST)), 32)
        loader = Loader(remote, lambda s, r: {"tokens": s["tokens"]}, global_batch_size=4)
        batches = [step.micro_batches[0]["tokens"].numpy() for _, step in zip(range(3), loader, strict=False)]
        remote.dataset._store.cache().close()
    assert np.array_equal(np.concatenate(batches), np.stack([local.sample(p)["tokens"] for p in range(12)]))


def test_secrets_in_urls_are_not_told():
    assert redacted("https://me:secret@host/a.tar?X-Amz-Signature=abc") == "https://host/a.tar"


def test_fsspec_filesystem_gives_the_samples_of_the_folder(folder):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert keys_of(open_dataset("memory://bucket", fetching=FAST)) == [f"{i:06d}" for i in range(60)]
    memory.rm("/bucket/000001.tar")
    with pytest.raises(DamagedSampleError, match="FileNotFound"):
        shutil.rmtree(open_dataset("memory://bucket")._store.cache().folder)
        open_dataset("memory://bucket", fetching=FAST)[20]


@pytest.mark.slow
def test_s3_gives_the_samples_of_the_folder(folder, monkeypatch):
    with s3_server(monkeypatch) as s3:
        for path in folder.iterdir():
            s3.pipe_file(f"bucket/data/{path.name}", path.read_bytes())
        assert keys_of(open_dataset("s3://bucket/data", fetching=FAST)) == [f"{i:06d}" for i in range(60)]
        options = StorageOptions(endpoint_url=os.environ["AWS_ENDPOINT_URL"], requester_pays=True)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
        own = FetchOptions(retry=Retry(patience=2.0, storage=options))
        assert keys_of(open_dataset("s3://bucket/data/*.tar", fetching=own)) == [
            f"{i:06d}" for i in range(60)
        ]


def test_manifest_of_urls_mixes_with_local_folder(folder, tmp_path):
    """A small local folder whose manifest names shards elsewhere."""
    with bad_server(folder) as (url, _):
        dataset = open_dataset([f"{url}/000000.tar", str(folder / "000001.tar")], fetching=FAST)
        assert keys_of(dataset) == [f"{i:06d}" for i in range(40)]
        spec = json.loads((dataset.folder / "manifest.json").read_text())
        assert spec["shardlist"][0]["url"].startswith("http://")
