"""What reading costs is counted wherever it is done, and `bench` says what machine and storage give."""

import itertools
import json

import pytest
from bad_server import bad_server
from small_data import write_images

from data_tools import FetchOptions, Loader, Stream, open_dataset
from data_tools.__main__ import main
from data_tools.dataset.reader import HEAD_BYTES
from data_tools.order.shuffle import Layout
from data_tools.storage import counters
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.metering.meter import CLOCKED, Meter


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "data", samples=60, per_shard=20)


def number(sample, rng):
    return {"n": sample["json"]["number"]}


def take(dataset, steps: int, **options) -> counters.Counts:
    """What an epoch of so many steps adds to the counts."""
    before = counters.total()
    loader = Loader(Stream(dataset, layout=Layout(2, 5, 1)), number, global_batch_size=60 // steps, **options)
    assert len(list(itertools.islice(loader, steps))) == steps
    loader.close()
    return counters.total() - before


@pytest.mark.parametrize(
    "workers, kind", [(0, "thread"), (2, "thread"), pytest.param(1, "process", marks=pytest.mark.slow)]
)
def test_what_workers_read_is_counted_wherever_they_work(folder, workers, kind):
    found = take(open_dataset(folder), 1, workers=workers, worker_kind=kind)
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert (
        0.8 * size < found.read_bytes <= 6 * size
    )  # an archive's end is no sample's; some steps are prepared ahead
    assert found.samples >= 60 and found.reading > 0 and found.decoding > 0 and found.making > 0
    assert found.fetched_bytes == found.cache_hits == found.cache_misses == 0


def test_what_is_fetched_and_dropped_is_counted(folder, monkeypatch):
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    with bad_server(folder) as (url, _):
        dataset = open_dataset(url)
        first, again = take(dataset, 15), take(dataset, 15)
        dataset._store.cache().close()
        heads = 8 * HEAD_BYTES  # which tell whether keys repeat
        assert 0.8 * size < first.fetched_bytes <= size + heads and first.cache_evictions == 0
        assert first.cache_hits + first.cache_misses >= 60
        assert again.fetched_bytes == again.cache_misses == 0 and again.cache_hits >= 60
        monkeypatch.setenv("MASQUERADE_CACHE", str(folder / "small"))
        small = open_dataset(url, fetching=FetchOptions(cache_bytes=size // 3))
        assert take(small, 15).cache_evictions > 0
        small._store.cache().close()


def test_a_logged_line_says_what_the_data_cost(folder):
    meter = Meter(DDPEngine(TrainConfig(), World()))
    with bad_server(folder) as (url, _):
        dataset = open_dataset(url)
        take(dataset, 15)
        dataset._store.cache().close()
    line = meter.line()
    assert line["fetched_mib_per_second"] > 0 and line["read_mib_per_second"] > 0
    assert line["cache_hits"] + line["cache_misses"] >= 60 and line["cache_evictions"] == 0
    assert line["data_reading"] > 0 and line["data_decoding"] > 0
    assert line["data_transforming"] >= 0  # the rest, of which little is left while a server is slow
    later = meter.line()  # nothing was read since
    assert later["cache_hits"] == later["read_mib_per_second"] == later["data_decoding"] == 0
    assert line.keys() == later.keys() and line.keys() <= CLOCKED
    assert not any(name.startswith("cache_") for name in Meter(meter.engine).line())


@pytest.mark.parametrize("remote", [False, True])
def test_bench_says_where_the_time_goes_and_which_workers_to_take(folder, tmp_path, capsys, remote):
    with bad_server(folder) as (url, _):
        arguments = [url if remote else str(folder), "--seconds", "1", "--json", str(tmp_path / "bench.json")]
        assert main(["bench", *arguments, "--batch-size", "20"]) == 0
    told, found = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    for words in (
        "60 samples",
        "storage, 8 readers (cold)",
        "decoding",
        "a perfect loader",
        "advised: data.workers=",
    ):
        assert words in told
    assert found["cold"] and found["advised"]["number"] >= 1 and found["perfect"] > 0
    assert found["advised"]["per_second"] >= 0.9 * max(
        w["per_second"] for w in found["loaders"] if w["number"]
    )
    assert {w["number"] for w in found["loaders"]} >= {0, 1}


def test_bench_batches_pictures_of_unequal_sizes_where_it_is_told_a_size(tmp_path, capsys):
    from small_data import png

    from data_tools import ShardWriter, finish_dataset

    writer = ShardWriter(tmp_path / "data")
    for i in range(8):
        writer.write(f"{i:06d}", {"png": png(i, side=8 + i % 2)})
    finish_dataset(writer)
    for options, said in (([], True), (["--image-size", "8"], False)):
        assert main(["bench", str(tmp_path / "data"), "--seconds", "1", "--batch-size", "8", *options]) == 0
        assert ("batches were not collated: field 'image'" in capsys.readouterr().out) == said
