"""Paths that are not UTF-8, as old disks have them (Linux takes any bytes): read like any other."""

from __future__ import annotations

import os

import pytest
from small_data import png, write_images

from data_tools.commands.merge import merge
from data_tools.commands.split import split
from data_tools.commands.stats import statistics
from data_tools.commands.verify import verify
from data_tools.dataset.content import digest_content
from data_tools.dataset.foreign_indexes import export_dali
from data_tools.dataset.index import index_shards
from data_tools.dataset.open import open_dataset
from data_tools.storage.checksum import digest_text
from data_tools.storage.urls import join_url, quoted

LATIN = os.fsdecode(b"caf\xe9")
KEYS = [f"{number:06d}" for number in range(6)]


@pytest.fixture
def folder(tmp_path):
    """Two tars below ``café`` in Latin-1, one of them called so too; no manifest."""
    try:
        written = write_images(tmp_path / LATIN, 6, 3)
    except OSError:
        pytest.skip("this file system takes no such name")
    for path in [written / "manifest.json", *written.glob("*.sidecar")]:
        path.unlink()
    (written / "000001.tar").rename(written / f"{LATIN}.tar")
    return written


def keys_of(place):
    return sorted(sample["__key__"] for sample in open_dataset(place))


def test_tars_without_a_manifest_are_indexed_and_opened(folder):
    assert keys_of(folder) == keys_of([folder / "000000.tar", folder / f"{LATIN}.tar"]) == KEYS


def test_every_command_finds_them(folder, tmp_path):
    manifest, bad = index_shards(sorted(folder.glob("*.tar")), folder)
    assert manifest.urls == ["000000.tar", f"{LATIN}.tar"] and bad == []
    assert keys_of(folder) == KEYS
    dataset = open_dataset(folder)
    assert verify(dataset, processes=1)[1] == [] and statistics(dataset, processes=1)["samples"] == 6
    split(dataset, 0.5, tmp_path / "train", tmp_path / "test", processes=1)
    assert sorted(keys_of(tmp_path / "train") + keys_of(tmp_path / "test")) == KEYS
    merge([dataset, open_dataset(write_images(tmp_path / "more", 2))], tmp_path / "all")
    assert keys_of(tmp_path / "all") == sorted([*KEYS, *KEYS[:2]])
    export_dali(dataset)
    assert (folder / f"{LATIN}.dali.idx").is_file()


def test_a_web_server_is_asked_for_their_bytes():
    assert join_url("https://host/a?key=1", f"{LATIN}.tar") == "https://host/a/caf%E9.tar?key=1"
    assert quoted(f"https://host/{LATIN}.tar") == "https://host/caf%E9.tar"
    assert quoted("https://host/café.tar") == "https://host/caf%C3%A9.tar"


def test_digests_take_any_text_and_are_those_of_before_for_utf_8():
    assert digest_text("café") == "9883c13e4279980fe3f262ea93047f84"
    assert len({digest_text(LATIN), digest_text("café"), digest_text("caf\udcea")}) == 3
    assert digest_content({LATIN: memoryview(png(1))}) != digest_content({"png": memoryview(png(1))})
