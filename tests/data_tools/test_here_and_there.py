"""Data sets of which some shards lie on this machine and some elsewhere, and what is built in a cache for others."""

import json
import os
import stat

import numpy as np
import pytest
from small_data import write_images, write_tokens
from store_server import store_server

from data_tools.dataset.open import open_dataset
from data_tools.storage.cache_folder import build_once
from data_tools.stream.loader import Loader
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache):
    """The shards of which segments are in the cache."""
    return {int(path.name[:8]) for path in cache.glob("segments/*/0*")}


def test_shards_of_this_machine_are_read_where_they_lie(tmp_path, cache):
    here = write_images(tmp_path / "here", samples=20, per_shard=10)
    write_images(tmp_path / "there" / "data", samples=20, per_shard=10)
    with store_server(tmp_path / "there") as (url, _):
        dataset = open_dataset([str(here), f"{url}/data"])
        loader = Loader(
            Stream(dataset), lambda s, r: {"n": s["json"]["number"]}, global_batch_size=4, workers=0
        )
        steps = iter(loader)
        seen = np.concatenate([np.asarray(next(steps).micro_batches[0]["n"]) for _ in range(10)])
        assert sorted(seen.tolist()) == sorted([*range(20)] * 2)
        assert {sample["__key__"] for sample in dataset} == {f"{i:06d}" for i in range(20)}
        loader.close()
    assert cached(cache) == {2, 3}


def test_long_documents_of_this_machine_are_read_where_they_lie(tmp_path, cache):
    here = write_tokens(tmp_path / "here", [20_000] * 4, per_shard=4)
    write_tokens(tmp_path / "there" / "data", [20_000] * 4, per_shard=4)
    with store_server(tmp_path / "there") as (url, _):
        stream = PackedStream(Stream(open_dataset([str(here), f"{url}/data"])), length=1000)
        reader = stream.read_ahead()
        reader.advance(0, lambda position: position + 80, lambda position: np.arange(position, position + 80))
        rows = [stream.sample(position)["tokens"] for position in range(160)]
        reader.close()
    assert sorted(np.concatenate(rows).tolist()) == sorted(
        [value for i in range(4) for value in range(1000 * i, 1000 * i + 20_000)] * 2
    )
    assert cached(cache) == {1}


def test_what_is_built_in_a_shared_cache_can_be_read_by_all_of_its_users(tmp_path):
    """Whatever the umask of the one who builds it."""
    shared = tmp_path / "cache"
    shared.mkdir()
    shared.chmod(0o2775)

    def build(folder):
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("built")

    mask = os.umask(0o077)
    try:
        built = build_once(shared / "kind" / "name", build)
    finally:
        os.umask(mask)
    for path in (built, built / "below", built / "below" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o070 == (0o070 if path.is_dir() else 0o060)


def test_the_tokenizer_of_remote_tokens_comes_along_and_nothing_from_outside_their_folder(tmp_path, cache):
    data = write_tokens(tmp_path / "there" / "data", [200] * 4, per_shard=4)
    (tmp_path / "there" / "secret").mkdir()
    for place in (data / "tokenizer", tmp_path / "there" / "secret"):
        place.mkdir(exist_ok=True)
        (place / "tokenizer.json").write_text(place.name)
    manifest = json.loads((data / "manifest.json").read_text())
    with store_server(tmp_path / "there") as (url, server):
        for named in ("tokenizer", "../secret", str(tmp_path / "there" / "secret"), "tokenizer"):
            (data / "manifest.json").write_text(json.dumps({**manifest, "about": {"tokenizer": named}}))
            folder = open_dataset(f"{url}/data").folder
            assert (folder / "tokenizer" / "tokenizer.json").read_text() == "tokenizer"
            assert not any("secret" in path for _, path, _ in server.requests)
        server.requests.clear()
        open_dataset(f"{url}/data")
        assert [path for _, path, _ in server.requests] == ["/data/manifest.json"]
