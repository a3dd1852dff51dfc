"""Opening: our shards, others' shards, the embedded samples, and what is refused."""

import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset as wds
from small_data import npy, png, write_images, write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.handles import Recent


@pytest.mark.parametrize(
    "name, count, fields",
    [
        ("digits", 12000, {"image": "png", "label": "cls"}),
        ("digits_test", 2000, {"image": "png", "label": "cls"}),
        ("sotu", 6665, {"text": "txt", "json": "json"}),
        ("speech", 214, {"audio": "flac", "json": "json"}),
    ],
)
def test_embedded_samples_open(name, count, fields):
    dataset = open_dataset(f"sample:{name}")
    assert len(dataset) == count
    assert dataset.fields == fields
    assert (dataset.folder / "LICENCE.txt").is_file()


def test_embedded_digits_are_mnist():
    dataset = open_dataset("sample:digits")
    assert [dataset[i]["label"] for i in range(5)] == [5, 0, 4, 1, 9]
    assert dataset[0]["image"].shape == (28, 28, 1)
    assert dataset[0]["image"].sum() == 27525  # of the published file


def test_plain_webdataset_reads_our_shards(tmp_path):
    folder = write_images(tmp_path, samples=30, per_shard=12)
    urls = sorted(str(p) for p in folder.glob("*.tar"))
    theirs = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    ours = list(open_dataset(folder))
    assert [s["__key__"] for s in theirs] == [s["__key__"] for s in ours]
    assert np.array_equal(theirs[7]["png"][:, :, :1], ours[7]["image"])
    assert theirs[7]["json"] == ours[7]["json"] == {"number": 7}


def test_shards_of_plain_webdataset_are_read(tmp_path):
    with wds.ShardWriter(str(tmp_path / "x-%06d.tar"), maxcount=7, verbose=0) as sink:
        for i in range(20):
            sink.write({"__key__": f"k{i:03d}", "png": png(i), "cls": i, "json": {"i": i}})
    dataset = open_dataset(tmp_path)
    assert [s["label"] for s in dataset] == list(range(20))
    assert dataset[3]["json"] == {"i": 3}


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_shards_of_tar_are_read(tmp_path, form):
    long = "a" * 60 + "/" + "b" * 30  # fits v7's hundred bytes, with the extension
    if form in ("gnu", "pax"):
        long = "c" * 90 + "/" + long
    (tmp_path / "in" / long).parent.mkdir(parents=True)
    for i in range(5):
        (tmp_path / "in" / f"{long}{i}.txt").write_text(f"text {i}")
        (tmp_path / "in" / f"{long}{i}.cls").write_text(str(i))
    names = sorted(p.name for p in (tmp_path / "in").iterdir())
    subprocess.run(
        ["tar", f"--format={form}", "--sort=name", "-cf", tmp_path / "s.tar", "-C", tmp_path / "in", *names],
        check=True,
    )
    samples = list(open_dataset(tmp_path / "s.tar"))
    assert [s["__key__"] for s in samples] == [f"{long}{i}" for i in range(5)]
    assert [s["text"] for s in samples] == [f"text {i}" for i in range(5)]


def test_fields_are_named_by_kind_and_by_extension_when_two_are_alike(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        members = {
            "a.left.png": png(1),
            "a.right.png": png(2),
            "a.tokens.npy": npy(np.arange(3)),
            "a.npy": npy(np.ones(2)),
            "a.bin": b"xyz",
        }
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    sample = open_dataset(tmp_path / "s.tar")[0]
    assert set(sample) == {"__key__", "left.png", "right.png", "tokens", "array", "bin"}
    assert sample["tokens"].tolist() == [0, 1, 2]
    assert sample["bin"] == b"xyz"


def test_indexing_on_the_fly_leaves_the_folder_alone_and_notices_changes(tmp_path):
    with wds.ShardWriter(str(tmp_path / "%03d.tar"), verbose=0) as sink:
        sink.write({"__key__": "a", "cls": 1})
    before = open_dataset(tmp_path).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000.tar"]
    assert open_dataset(str(tmp_path / "*.tar")).fingerprint == before
    with wds.ShardWriter(str(tmp_path / "%03d.tar"), verbose=0) as sink:
        sink.write({"__key__": "a", "cls": 1})
        sink.write({"__key__": "b", "cls": 2})
    assert len(open_dataset(tmp_path)) == 2


def test_fingerprint_does_not_depend_on_the_place(tmp_path):
    a, b = (open_dataset(write_images(tmp_path / name, 10)) for name in "ab")
    c = open_dataset(write_images(tmp_path / "c", 11))
    assert a.fingerprint == b.fingerprint != c.fingerprint


@pytest.mark.parametrize(
    "source, message",
    [
        ("sample:nothing", "no such sample"),
        ("/does/not/exist", "no such data set"),
        ("/does/not/*.tar", "no such data set"),
        ("pipe:touch x", "refused"),
        ([], "no such data set"),
    ],
)
def test_what_is_no_data_set_is_told_in_one_line(source, message):
    with pytest.raises(UserError, match=message) as error:
        open_dataset(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>" * 100, bytes(10240)])
def test_what_is_no_tar_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.tar: not a usable tar"):
        open_dataset(tmp_path)


def test_pickles_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("a.pyd")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match="pickle"):
        open_dataset(tmp_path)


def test_our_manifest_is_a_wids_index(tmp_path):
    spec = json.loads((write_images(tmp_path, 30, 12) / "manifest.json").read_text())
    assert [(s["url"], s["nsamples"]) for s in spec["shardlist"]] == [
        ("000000.tar", 12),
        ("000001.tar", 12),
        ("000002.tar", 6),
    ]


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"shardlist": []}'])
def test_damaged_manifest_is_refused(tmp_path, content):
    write_images(tmp_path, 3)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        {"nsamples": 10**30}, {"nsamples": float("inf")}, {"nsamples": -3}, {"bad": 4}, {"filesize": -1},
        {"url": ""}, {"url": "a\0.tar"}, {"url": "\ud800.tar"},
    ],
)  # fmt: skip
def test_a_manifest_of_impossible_shards_is_refused(tmp_path, told):
    manifest = json.loads((write_images(tmp_path, 6, 3) / "manifest.json").read_text())
    manifest["shardlist"][0] |= told
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not a manifest of this version"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"x" + b[1:], lambda b: b"", lambda b: None])
def test_damaged_or_missing_sidecar_is_refused(tmp_path, damage):
    path = write_images(tmp_path, 3) / "000000.tar.sidecar"
    damaged = damage(path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with pytest.raises(UserError, match="sidecar"):
        open_dataset(tmp_path)[0]


def test_a_file_that_the_cache_drops_is_read_to_the_end(tmp_path, monkeypatch):
    """Its number must not become another file's while a thread is about to read from it."""
    dataset = open_dataset(write_tokens(tmp_path / "data", [5] * 20, per_shard=10))
    store = dataset._store
    store._files = Recent(store._open, 1)
    read = os.pread

    def dropped_before_it_is_read(handle, size, offset):
        store._files(0)
        store._files(1)
        return read(handle, size, offset)

    expected = [sample["__key__"] for sample in dataset]
    monkeypatch.setattr(os, "pread", dropped_before_it_is_read)
    assert [sample["__key__"] for sample in dataset] == expected
