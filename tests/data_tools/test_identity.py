"""Which bytes a data set is: two are never taken for one, and one stays one whatever is signed, copied or verified."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_data import npy, write_tokens
from store_server import store_server

from data_tools.__main__ import main
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.formats.sidecar import read_sidecar
from data_tools.storage.cache_folder import cache_folder
from data_tools.storage.location import location_of
from data_tools.storage.objects import Retry
from data_tools.storage.segments import FetchOptions
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream

FAST = FetchOptions(retry=Retry(patience=2.0, timeout=1.0, first_wait=0.01, longest_wait=0.05))


def command(*words) -> int:
    return run_cli(lambda: main([str(word) for word in words]))


def write(folder: Path, first: int) -> Path:
    """Two shards of documents of equal sizes; ``first`` is the first token of the first one."""
    writer = ShardWriter(folder, max_samples=2)
    for i in range(4):
        writer.write(f"doc{i}", {"tokens.npy": npy(np.arange(8, dtype=np.uint32) + first + 10 * i)})
    finish_dataset(writer)
    return folder


def bare(folder: Path) -> Path:
    """The tars alone."""
    for path in [*folder.glob("*.sidecar"), folder / "manifest.json"]:
        path.unlink()
    return folder


def first_tokens(dataset) -> list[int]:
    return [int(sample["tokens"][0]) for sample in dataset]


A, B = [100, 110, 120, 130], [500, 510, 520, 530]


def test_the_fingerprint_of_packed_data_is_what_it_always_was(tmp_path):
    write_tokens(tmp_path, [3, 1, 4, 1, 5], per_shard=2)
    assert open_dataset(tmp_path).fingerprint == "b2fbb050e29472ccd76a9a9e07418e50"
    assert command("verify", tmp_path, "--processes", 1) == 0
    assert open_dataset(tmp_path).fingerprint == "b2fbb050e29472ccd76a9a9e07418e50"


def test_remote_data_of_equal_layout_keep_to_themselves(tmp_path):
    for name, first in (("a", 100), ("b", 500)):
        assert command("index", bare(write(tmp_path / name, first)), "--no-crc") == 0
    with store_server(tmp_path) as (url, _):
        a, b = (open_dataset(f"{url}/{name}", fetching=FAST) for name in "ab")
        assert a.fingerprint == b.fingerprint
        assert (first_tokens(a), first_tokens(b)) == (A, B)


@pytest.mark.parametrize("tells_etag, crc", [(True, "--crc"), (False, "--crc"), (True, "--no-crc")])
def test_a_shard_replaced_by_one_of_equal_size_is_noticed(tmp_path, tells_etag, crc):
    write(tmp_path / "a", 100), write(tmp_path / "b", 500)
    with store_server(tmp_path / "a") as (url, server):
        server.tells_etag = tells_etag
        tars = [f"{url}/{i:06d}.tar" for i in range(2)]
        bare(tmp_path / "a")
        assert command("index", f"{url}/000000.tar", "--output", tmp_path / "own", crc) == 0
        before = [open_dataset(place, fetching=FAST) for place in (tars, tmp_path / "own")]
        assert [first_tokens(dataset) for dataset in before] == [A, A[:2]]
        shutil.copy(tmp_path / "b" / "000000.tar", tmp_path / "a")
        shutil.rmtree(cache_folder() / "segments")
        if tells_etag:  # indexed anew where no manifest was written; a manifest that was is told to be stale
            after = open_dataset(tars, fetching=FAST)
            assert first_tokens(after) == B[:2] + A[2:]
            assert after.fingerprint != before[0].fingerprint
        with pytest.raises((DamagedSampleError, UserError), match=r"replaced|checksum does not match"):
            first_tokens(open_dataset(tmp_path / "own", fetching=FAST))


def test_a_fresh_signature_is_the_same_data(tmp_path):
    bare(write(tmp_path, 100))
    with store_server(tmp_path) as (url, server):

        def signed(signature):
            server.signature = f"X-Amz-Expires=60&X-Amz-Signature={signature}"
            return [f"{url}/{i:06d}.tar?{server.signature}" for i in range(2)]

        first = open_dataset(signed("one"), fetching=FAST)
        assert first_tokens(first) == A
        state = Loader(Stream(first), lambda s, r: s, global_batch_size=2).state_dict()
        server.requests.clear()
        again = open_dataset(signed("two"), fetching=FAST)
        assert first_tokens(again) == A
        assert (
            len(server.reads) == 2
        )  # one byte of each, for its size: the index and the segments are those of before
        Loader(Stream(again), lambda s, r: s, global_batch_size=2).load_state_dict(state)
        shutil.rmtree(cache_folder() / "segments")
        again = open_dataset(signed("three"), fetching=FAST)
        assert first_tokens(again) == A
        assert not any("?" in place for place in again.manifest.urls)
        written = [p for p in again.folder.rglob("*") if p.is_file()]
        assert not any(b"Signature" in p.read_bytes() for p in written)
        with pytest.raises(UserError, match="comes with a password or signature"):
            from data_tools.commands.split import split

            split(again, 0.5, tmp_path / "train", tmp_path / "test")


@pytest.mark.parametrize(
    "url, location",
    [
        ("https://me:pa@ss@host/a.tar", "https://host/a.tar"),
        ("https://h/a.tar?X-Goog-Signature=1&X-Goog-Date=2", "https://h/a.tar"),
        ("https://h/a.tar?sv=2024&se=z&sp=r&sig=abc%3D", "https://h/a.tar"),
        ("https://h/a%20b.tar?Expires=1&Signature=x&Key-Pair-Id=k", "https://h/a%20b.tar"),
        ("https://h/get?file=a.tar&token=x", "https://h/get?file=a.tar"),
        ("s3://bucket/what?.tar", "s3://bucket/what?.tar"),
        ("/a/b?c.tar", "/a/b?c.tar"),
    ],
)
def test_a_location_lacks_what_only_opens_it(url, location):
    assert location_of(url) == location


def test_identity_without_crc_says_so_and_is_the_exception(tmp_path, caplog, capsys):
    bare(write(tmp_path / "a", 100))
    assert command("index", tmp_path / "a", "--no-crc") == 0
    assert "of the layout only" in capsys.readouterr().out
    with caplog.at_level(logging.WARNING):
        layout = open_dataset(tmp_path / "a")
    assert "identity (layout-" in caplog.text
    assert layout.fingerprint.startswith("layout-") and layout.select([0]).fingerprint.startswith("layout-")
    assert command("stats", tmp_path / "a", "--processes", 1) == 0
    assert "of the layout only" in capsys.readouterr().out
    assert command("index", tmp_path / "a") == 0
    whole = open_dataset(tmp_path / "a")
    assert whole.knows_content and "layout" not in whole.fingerprint
    automatic = open_dataset(str(tmp_path / "a" / "*.tar"))
    assert automatic.fingerprint == whole.fingerprint


def test_runs_that_knew_data_by_their_layout_go_on_when_the_crc_is_taken(tmp_path):
    write_tokens(tmp_path / "t", [5] * 12, with_length=False)
    bare(tmp_path / "t")
    assert command("index", tmp_path / "t", "--no-crc") == 0

    def loaders():
        stream = Stream(open_dataset(tmp_path / "t"))
        packed = PackedStream(stream, 8)
        mixture = Mixture({"a": Stream(open_dataset(tmp_path / "t"))}, {"a": 1.0})
        return [Loader(s, lambda s, r: s, global_batch_size=2) for s in (stream, packed, mixture)]

    def in_old_words(state):  # as it was written before a fingerprint said so
        words = {name: in_old_words(v) if isinstance(v, dict) else v for name, v in state.items()}
        if "fingerprint" in words:
            words["fingerprint"] = words["fingerprint"].removeprefix("layout-")
        return words

    states = [loader.state_dict() for loader in loaders()]
    assert command("index", tmp_path / "t") == 0
    for wording in (in_old_words, dict):
        for loader, state in zip(loaders(), states, strict=True):
            loader.load_state_dict(wording(state))
            assert loader.state_dict() == wording(state)  # the run keeps its name for the data
    write_tokens(tmp_path / "u", [600] * 12, with_length=False)
    for path in (tmp_path / "u").iterdir():
        shutil.copy(path, tmp_path / "t")
    with pytest.raises(UserError, match="not the one of the saved state: fingerprint"):
        loaders()[0].load_state_dict(states[0])


def test_a_sidecar_that_is_not_the_manifests_own_is_told(tmp_path):
    write(tmp_path / "a", 100), write(tmp_path / "b", 500)
    shutil.copy(tmp_path / "b" / "000000.tar.sidecar", tmp_path / "a")
    with pytest.raises(UserError, match=r"not the sidecar that the manifest means; run .* index"):
        open_dataset(tmp_path / "a")[0]


def test_remote_tars_are_fetched_once_to_index_them(tmp_path):
    writer = ShardWriter(tmp_path, max_samples=100)
    for i in range(4):
        writer.write(f"{i:03d}", {"bin": bytes(3 << 20)})
    finish_dataset(writer)
    bare(tmp_path)
    with store_server(tmp_path) as (url, server):
        dataset = open_dataset(f"{url}/000000.tar")
        assert len(server.reads) == 2  # windows of 8 MB
    assert dataset.fingerprint == open_dataset(tmp_path / "000000.tar").fingerprint


def put(store, folder: Path) -> None:
    for path in folder.iterdir():
        store.pipe_file(f"/shelf/data/{path.name}", path.read_bytes())


@pytest.fixture
def store():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/shelf", recursive=True)


def test_a_prefix_is_indexed_verified_and_split_where_it_lies(tmp_path, store, capsys):
    whole = open_dataset(write(tmp_path / "a", 100)).fingerprint
    put(store, bare(tmp_path / "a"))
    place = "memory://shelf/data"
    automatic = open_dataset(place)  # no manifest there yet
    assert first_tokens(automatic) == A
    assert command("index", place) == 0
    assert store.exists("/shelf/data/manifest.json") and store.exists("/shelf/data/000001.tar.sidecar")
    dataset = open_dataset(place)
    assert dataset.manifest.urls == ["000000.tar", "000001.tar"]
    assert dataset.fingerprint == automatic.fingerprint == whole
    assert command("verify", place, "--processes", 1) == 0
    assert command("split", place, tmp_path / "train", tmp_path / "test", "--fraction", 0.5) == 0
    halves = [first_tokens(open_dataset(tmp_path / name)) for name in ("train", "test")]
    assert sorted(halves[0] + halves[1]) == A and all(halves)
    assert (tmp_path / "train" / "manifest.json").read_text().count(place) == 2
    damaged = bytearray(store.cat("/shelf/data/000001.tar"))
    damaged[700] ^= 1
    store.pipe_file("/shelf/data/000001.tar", bytes(damaged))
    assert command("verify", place, "--processes", 1) == 1
    marked = open_dataset(place)
    assert marked.fingerprint == whole and marked.marked.tolist() == [2]
    capsys.readouterr()
    assert command("verify", "memory://shelf", "--processes", 1) == 2
    assert "no manifest there" in capsys.readouterr().err


def test_what_cannot_be_written_beside_goes_to_a_folder(tmp_path, capsys):
    write(tmp_path / "data", 100)
    with store_server(tmp_path / "data") as (url, _):
        assert command("verify", url, "--processes", 1) == 0  # nothing to mark, nothing to write
        sidecar = read_sidecar(tmp_path / "data" / "000000.tar.sidecar")
        data = bytearray((tmp_path / "data" / "000000.tar").read_bytes())
        data[int(sidecar.offset[1]) + 600] ^= 1
        (tmp_path / "data" / "000000.tar").write_bytes(data)
        capsys.readouterr()
        assert command("verify", url, "--processes", 1) == 2
        assert "give a local folder with --output" in capsys.readouterr().err
        assert command("verify", url, "--processes", 1, "--output", tmp_path / "own") == 1
        marked = open_dataset(tmp_path / "own", fetching=FAST)
        assert marked.marked.tolist() == [1]
        assert marked.fingerprint == open_dataset(url, fetching=FAST).fingerprint
        assert first_tokens(marked) == [100, 120, 130]
        assert command("index", url) == 2
        assert command("index", f"{url}/000000.tar") == 2
        assert "name one with --output" in capsys.readouterr().err
