"""What `verify` marks: bytes that it read, never a shard that is away; and no run loses its place by it."""

import shutil

import numpy as np
import pytest
from bad_server import bad_server
from small_data import png, write_images, write_tokens
from store_server import store_server

from data_tools.__main__ import main
from data_tools.commands.verify import verify as mark_bad
from data_tools.dataset.damage import DamagedSampleError, Ledger
from data_tools.dataset.open import open_dataset, open_marked
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.formats.sidecar import read_sidecar
from data_tools.storage.objects import Retry
from data_tools.storage.segments import FetchOptions
from data_tools.stream.evaluation import evaluation_batches
from data_tools.stream.loader import Loader
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream

UNCHECKED = FetchOptions(checksums=False)


def command(*words) -> int:
    return run_cli(lambda: main([str(word) for word in words]))


def verify(*words) -> int:
    return command("verify", *words, "--processes", 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("sound"), 40, 10)


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "data")


def flip(folder, number: int) -> None:
    """A bit of the sample's picture."""
    shard = folder / f"{number // 10:06d}.tar"
    data = bytearray(shard.read_bytes())
    data[int(read_sidecar(folder / f"{shard.name}.sidecar").offset[number % 10]) + 512 + 60] ^= 1
    shard.write_bytes(data)


def loader(folder, limit: float = 1.0) -> Loader:
    stream = Stream(open_dataset(folder), seed=1)
    return Loader(
        stream, lambda s, r: {"n": s["json"]["number"]}, global_batch_size=10, max_damage_rate=limit
    )


def numbers(steps) -> list[int]:
    return [int(n) for step in steps for n in step.micro_batches[0]["n"]]


def take(loader: Loader, steps: int):
    return [step for _, step in zip(range(steps), loader, strict=False)]


def test_a_run_goes_on_in_the_same_order_after_its_data_were_verified(folder):
    flip(folder, 13), flip(folder, 31)
    whole = numbers(take(loader(folder), 8))
    stopped = loader(folder)
    begun = numbers(take(stopped, 3))
    assert verify(folder) == 1
    resumed = loader(folder)
    resumed.load_state_dict(stopped.state_dict())
    rest = take(resumed, 5)
    assert begun + numbers(rest) == whole  # the same samples stand in
    told = {(damage.name, damage.known) for step in rest for damage in step.damages}
    assert told <= {("000013", True), ("000031", True)} and told
    assert resumed.ledger.entries and not resumed.ledger.worst_shards()
    (folder / "000001.tar").unlink()  # a marked sample is not even read
    with pytest.raises(DamagedSampleError, match="000013: marked by verify: checksum does not match"):
        open_dataset(folder)[13]


def test_marked_samples_do_not_count_as_damage_of_a_run(folder):
    for number in range(10, 20):
        flip(folder, number)
    assert verify(folder) == 1
    few = Loader(Stream(open_dataset(folder)), lambda s, r: {"n": 0}, global_batch_size=10)
    few.ledger = Ledger(max_rate=0.0, grace=1)
    take(few, 8)
    assert len(few.ledger.entries) == 20


def test_passes_over_all_samples_leave_marked_ones_out(folder, tmp_path):
    flip(folder, 13)
    assert verify(folder) == 1
    dataset = open_dataset(folder)
    left = [n for n in range(40) if n != 13]
    assert [s["json"]["number"] for s in dataset] == left
    assert len(dataset) == 40 and dataset.fingerprint == open_dataset(folder).fingerprint
    found = [
        int(key)
        for rank in range(3)
        for _, keys in evaluation_batches(dataset, lambda s, r: {"n": 0}, 4, rank, 3)
        for key in keys
    ]
    assert sorted(found) == left
    assert dataset.select([12, 13, 14]).marked.tolist() == [1]
    assert Stream(dataset).readable(np.arange(40)).size == 39
    assert command("split", folder, tmp_path / "a", tmp_path / "b", "--fraction", 0.5) == 0
    assert len(open_dataset(tmp_path / "a")) + len(open_dataset(tmp_path / "b")) == 39


def test_the_slots_of_a_marked_document_are_padding(tmp_path):
    write_tokens(tmp_path, [16] * 12)
    before = PackedStream(Stream(open_dataset(tmp_path)), 64)
    data = bytearray((tmp_path / "000000.tar").read_bytes())
    data[int(read_sidecar(tmp_path / "000000.tar.sidecar").offset[5]) + 512 + 130] ^= 1
    (tmp_path / "000000.tar").write_bytes(data)
    assert verify(tmp_path) == 1
    after = PackedStream(Stream(open_dataset(tmp_path, fetching=UNCHECKED)), 64)
    assert after.state() == before.state()
    rows = [after.sample(p) for p in range(after.samples_per_epoch)]
    damages = [damage for row in rows for damage in row.get("__damage__", ())]
    assert [(damage.name, damage.known) for damage in damages] == [("doc00005", True)]
    assert sum(int((row["document_ids"] > 0).sum()) for row in rows) == 11 * 16


def test_a_shard_that_is_away_is_an_error_and_no_damage(folder, capsys):
    flip(folder, 31)
    (folder / "000001.tar").rename(folder / "away")
    assert verify(folder) == 2
    assert "000001.tar: cannot be read" in capsys.readouterr().err
    assert not open_dataset(folder).marked.size
    (folder / "away").rename(folder / "000001.tar")
    assert verify(folder) == 1
    assert open_dataset(folder).marked.tolist() == [31]
    assert not list(folder.glob(".verify*"))


def test_a_shard_that_vanishes_while_it_is_read_is_no_damage_either(folder, monkeypatch, capsys):
    """Its name is there when the command begins; then the disk fails."""
    import data_tools.commands.verify as module

    def fail(handle, size, offset):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(module.os, "pread", fail)
        assert verify(folder) == 2
    assert "Input/output error" in capsys.readouterr().err
    assert verify(folder) == 0


@pytest.mark.parametrize("fault", [503, 404, "short"])
def test_a_server_that_fails_is_an_error_and_no_damage(folder, tmp_path, fault):
    retry = Retry(patience=0.3, timeout=1.0, first_wait=0.01, longest_wait=0.05)
    with bad_server(folder) as (url, server):
        dataset = open_marked(url, FetchOptions(retry=retry))
        server.faults["000002.tar"] = fault
        with pytest.raises(UserError, match=r"000002\.tar"):
            mark_bad(dataset, processes=1, output=tmp_path / "own")
        assert not open_dataset(tmp_path / "own").marked.size
        server.faults.clear()
        _, bad = mark_bad(dataset, processes=1, output=tmp_path / "own")
        assert not bad


def test_what_is_sound_over_http_is_not_marked(folder, tmp_path):
    with store_server(folder) as (url, _):
        assert command("index", f"{url}/000000.tar", "--output", tmp_path / "urls") == 0
        assert verify(tmp_path / "urls") == 0
        flip(folder, 3)
        assert verify(tmp_path / "urls") == 1
        assert open_dataset(tmp_path / "urls").marked.tolist() == [3]


def test_what_indexing_left_out_stays_out(tmp_path):
    writer = ShardWriter(tmp_path)
    for i in range(5):
        writer.write(f"{i}", {"png": png(i), "cls": b"1"})
    finish_dataset(writer)
    shard = tmp_path / "000000.tar"
    shard.write_bytes(shard.read_bytes()[: -4 * 512])  # the last label, and the end mark
    assert command("index", tmp_path) == 0
    assert len(open_dataset(tmp_path)) == 4
    assert verify(tmp_path) == 1
    dataset = open_dataset(tmp_path)
    assert [sample["label"] for sample in dataset] == [1] * 4 and len(dataset) == 4


def test_marks_are_taken_back_when_the_shard_is_mended(folder, sound, capsys):
    flip(folder, 13), flip(folder, 31)
    assert verify(folder) == 1
    shutil.copy(sound / "000001.tar", folder)
    assert verify(folder) == 1
    assert open_dataset(folder).marked.tolist() == [31]
    assert len(list(folder.glob("marks-*.jsonl"))) == 1
    shutil.copy(sound / "000003.tar", folder)
    assert verify(folder) == 0
    assert not list(folder.glob("marks-*")) and open_dataset(folder).manifest.marks is None


def test_what_is_excluded_makes_the_next_data_set(folder, tmp_path, capsys):
    flip(folder, 13)
    before = open_dataset(folder).fingerprint
    assert verify(folder, "--exclude", tmp_path / "next") == 1
    assert open_dataset(folder).fingerprint == before
    after = open_dataset(tmp_path / "next")
    assert len(after) == 39 and not after.marked.size and after.fingerprint != before
    assert [s["json"]["number"] for s in after] == [n for n in range(40) if n != 13]
    assert verify(tmp_path / "next") == 0
    assert verify(folder, "--exclude", tmp_path / "next") == 2
    assert "is not empty" in capsys.readouterr().err


def test_marks_of_other_data_are_refused(folder, capsys):
    flip(folder, 13)
    assert verify(folder) == 1
    (marks,) = folder.glob("marks-*.jsonl")
    marks.write_text(marks.read_text().replace("000013", "000014"))
    assert command("stats", folder, "--processes", 1) == 2
    assert "not the marks that the manifest means" in capsys.readouterr().err
    assert verify(folder) == 1  # which mends it
    assert open_dataset(folder).marked.tolist() == [13]
