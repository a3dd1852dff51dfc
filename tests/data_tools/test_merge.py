"""merge and append: one manifest over shards that stay where and as they are."""

import json
import shutil

import numpy as np
import pytest
from small_data import npy, png, write_images, write_tokens

from data_tools.__main__ import main
from data_tools.commands.split import split
from data_tools.dataset.open import open_dataset
from data_tools.errors import run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset


def command(*words) -> int:
    return run_cli(lambda: main([str(word) for word in words]))


def pack(folder, first, count, about=None, members=("png", "cls"), per_shard=8):
    makers = {
        "png": png, "cls": lambda i: str(i % 2).encode(), "json": lambda i: json.dumps({"i": i}).encode(),
        "tokens.npy": lambda i: npy(np.arange(i + 1, dtype=np.uint32)),
    }  # fmt: skip
    with ShardWriter(folder, max_samples=per_shard, with_length="tokens.npy" in members) as writer:
        for i in range(first, first + count):
            writer.write(f"{i:05d}", {name: makers[name](i) for name in members}, i + 1)
        finish_dataset(writer, about)
    return folder


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_merged_samples_are_those_of_all_in_order_and_nothing_is_copied(tmp_path, capsys):
    classes = {"classes": ["cat", "dog"], "licence": "CC0"}
    parts = [
        pack(tmp_path / "data" / name, first, 20, classes) for name, first in (("a", 0), ("b", 20), ("c", 40))
    ]
    before = times(tmp_path / "data")
    assert command("merge", *parts, tmp_path / "all") == 0
    assert "60 samples in 9 shards" in capsys.readouterr().out
    shutil.move(tmp_path / "all", tmp_path / "moved")  # with the shards they refer to: paths are relative
    merged = open_dataset(tmp_path / "moved")
    assert list(merged.keys()) == [f"{i:05d}" for i in range(60)]
    assert np.array_equal(merged[59]["image"], open_dataset(parts[2])[19]["image"])
    assert merged.manifest.about == classes
    assert not list((tmp_path / "moved").rglob("*.tar")) and times(tmp_path / "data") == before


def test_a_tokenizer_goes_along(tmp_path):
    for name, first in (("a", 0), ("b", 5)):
        folder = pack(tmp_path / name, first, 5, {"tokenizer": "tokenizer"}, members=("tokens.npy",))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    assert command("merge", tmp_path / "a", tmp_path / "b", tmp_path / "all") == 0
    merged = open_dataset(tmp_path / "all")
    assert merged.lengths.tolist() == list(range(1, 11))
    assert (tmp_path / "all" / merged.manifest.about["tokenizer"] / "tokenizer.json").is_file()
    split(open_dataset([tmp_path / "a", tmp_path / "b"]), 0.5, tmp_path / "train", tmp_path / "test")
    assert (tmp_path / "train" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("about", "members", "message"),
    [
        ({"classes": ["dog", "cat"]}, ("png", "cls"), "have different classes"),
        (None, ("png", "cls"), "b: does not name its classes, as "),
        ({"classes": ["cat", "dog"]}, ("png",), "b: its samples have no label, as those of "),
        ({"classes": ["cat", "dog"]}, ("png", "cls", "json"), "a: its samples have no json, as those of "),
        ({"classes": ["cat", "dog"]}, ("png", "cls", "tokens.npy"), "a: its samples have no tokens"),
    ],
)
def test_what_is_not_alike_is_refused_by_name(tmp_path, capsys, about, members, message):
    a = pack(tmp_path / "a", 0, 3, {"classes": ["cat", "dog"]})
    b = pack(tmp_path / "b", 0, 3, about, members)
    assert command("merge", a, b, tmp_path / "all") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "all").exists()


def test_lengths_of_some_only_are_refused(tmp_path, capsys):
    a, b = write_tokens(tmp_path / "a", [3, 4]), write_tokens(tmp_path / "b", [5], with_length=False)
    assert command("merge", a, b, tmp_path / "all") == 2
    assert "b: has no lengths in its sidecars" in capsys.readouterr().err
    assert command("merge", a, a, tmp_path / "all") == 2
    assert "stands in two of the data sets" in capsys.readouterr().err


def test_appended_shards_stand_behind_the_others_which_are_not_read(tmp_path, capsys):
    folder = write_images(tmp_path / "data", 20, 10)
    old = open_dataset(folder)
    write_images(tmp_path / "new", 30, 15)
    for number in range(2):
        shutil.move(tmp_path / "new" / f"{number:06d}.tar", folder / f"more-{number}.tar")
    kept = {path: path.read_bytes() for path in folder.glob("0*")}
    for shard in folder.glob("0*.tar"):
        shard.write_bytes(b"away")
    assert command("append", folder) == 0
    assert "2 shards are new" in capsys.readouterr().out
    for path, data in kept.items():
        assert path.read_bytes() == (data if path.suffix != ".tar" else b"away")
        path.write_bytes(data)
    appended = open_dataset(folder)
    assert list(appended.keys()) == [*old.keys(), *(f"{i:06d}" for i in range(30))]
    assert appended.manifest.urls == ["000000.tar", "000001.tar", "more-0.tar", "more-1.tar"]
    assert appended.fingerprint != old.fingerprint
    write_images(tmp_path / "elsewhere", 5)
    assert command("append", folder, tmp_path / "elsewhere") == 0
    assert len(list(open_dataset(folder))) == 55
    assert open_dataset(folder).manifest.urls[4:] == ["../elsewhere/000000.tar"]
    assert command("append", folder) == 2
    assert "every .tar in it stands in its manifest" in capsys.readouterr().err


def test_marks_of_verify_are_kept(tmp_path):
    folder = write_images(tmp_path / "data", 12, 6)
    shard = bytearray((folder / "000001.tar").read_bytes())
    at = shard.index(b"IDAT")
    shard[at : at + 20] = b"x" * 20
    (folder / "000001.tar").write_bytes(shard)
    assert command("verify", folder, "--processes", 1) == 1
    pack(tmp_path / "more", 50, 4, members=("png", "json"))
    for words, place in ((("merge", folder, tmp_path / "more", tmp_path / "all"), tmp_path / "all"),
                         (("append", folder, tmp_path / "more"), folder)):  # fmt: skip
        assert command(*words) == 0
        assert open_dataset(place).marked.tolist() == [6]
