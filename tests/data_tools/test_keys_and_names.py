"""Keys that only we could read back, keys that are no UTF-8, and files that only look like shards."""

import gzip
import io
import json
import sys

import pytest
import webdataset as wds
from small_data import png
from test_odd_tars import archive

from data_tools.__main__ import main
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.formats.tar import escape_key
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from pretrain.tracking.metrics import MetricsFile, read_metrics


@pytest.mark.parametrize("key", ["a.b", "v1/a.b", ".hidden", "", "folder/", "__MACOSX/a"])
def test_the_writer_refuses_what_would_be_read_back_as_another_sample(tmp_path, key):
    with ShardWriter(tmp_path) as writer, pytest.raises(UserError, match="read back"):
        writer.write(key, {"txt": b"1"})


def test_the_writer_refuses_the_same_key_twice_in_a_row(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("a", {"txt": b"1"})
        with pytest.raises(UserError, match="two samples in a row"):
            writer.write("a", {"cls": b"1"})


@pytest.mark.parametrize("key", ["a.b", "v1.0/a.b.c", "a", ".hidden", "folder/", "caf\udce9.x"])
def test_plain_webdataset_reads_escaped_keys_as_we_do(tmp_path, key):
    writer = ShardWriter(tmp_path)
    writer.write(escape_key(key), {"txt": b"1", "JSON": b"{}"})
    writer.write("next", {"txt": b"2"})
    finish_dataset(writer)
    theirs = [s["__key__"] for s in wds.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False)]
    assert [s["__key__"] for s in open_dataset(tmp_path)] == theirs == [escape_key(key), "next"]


def test_pictures_with_dots_in_their_names_are_samples_of_their_own(tmp_path):
    (tmp_path / "in/v1.0").mkdir(parents=True)
    for number, name in enumerate(["a.1.png", "a.2.png", "b.png"]):
        (tmp_path / "in/v1.0" / name).write_bytes(png(number))
    assert main(["pack", "images", str(tmp_path / "in"), str(tmp_path / "out"), "--processes", "1"]) == 0
    theirs = list(wds.WebDataset(str(tmp_path / "out/000000.tar"), shardshuffle=False))
    assert len({s["__key__"] for s in theirs}) == 3
    assert {s["png"] for s in theirs} == {png(number) for number in range(3)}


def test_a_damaged_sample_whose_key_is_no_utf8_is_counted_and_told(tmp_path):
    writer = ShardWriter(tmp_path)
    for key in ("caf\udce9", *(f"{number:02d}" for number in range(9))):
        writer.write(key, {"cls": b"no number" if key.startswith("caf") else b"1"})
    finish_dataset(writer)
    loader = Loader(Stream(open_dataset(tmp_path)), lambda s, rng: {"n": s["label"]}, global_batch_size=10)
    next(iter(loader))
    (damage,) = loader.ledger.entries
    assert damage.name == "caf\\udce9"
    metrics = MetricsFile(tmp_path)
    metrics.write({"kind": "damaged", "step": 1, "name": damage.name, "key": "caf\udce9"})
    metrics.close()
    assert read_metrics(tmp_path)[0]["key"] == "caf\udce9"


def test_names_that_are_no_utf8_are_printed_whatever_the_terminal(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    assert run_cli(lambda: print("caf\udce9.png") or 0) == 0
    assert out.buffer.getvalue() == b"caf\\udce9.png\n"


def test_what_only_looks_like_a_shard_is_said(tmp_path, caplog):
    (tmp_path / "a.tar").write_bytes(archive("a.txt"))
    for name in ("a.tar.gz", "b.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(archive("b.txt")))
    (tmp_path / "c.tar.zst").write_bytes(b"x")
    (tmp_path / "._a.tar").write_bytes(b"of macOS")
    assert [s["__key__"] for s in open_dataset(tmp_path)] == ["a", "b"]
    caplog.clear()
    assert main(["index", str(tmp_path)]) == 0
    told = [
        r.getMessage().removeprefix(f"{tmp_path}/") for r in caplog.records if "left out" in r.getMessage()
    ]
    assert [line.split(" ")[0] for line in told] == ["a.tar.gz:", "b.tgz:", "c.tar.zst:"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["url"] for entry in manifest["shardlist"]] == ["a.tar"]


def test_an_empty_tar_of_a_folder_is_passed_over(tmp_path):
    for name, data in {"a": archive("a.txt"), "b": b"", "c": archive("c.txt")}.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    assert [s["text"] for s in open_dataset(tmp_path)] == ["x", "x"]
