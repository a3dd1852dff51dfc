"""What a job of many shards costs does not grow with their number."""

import os
from pathlib import Path

import numpy as np
import pytest
from small_data import write_images, write_tokens

from data_tools.commands.split import split
from data_tools.commands.stats import statistics
from data_tools.commands.tokenize import plan_tokenize
from data_tools.dataset import open as opening
from data_tools.dataset.open import open_dataset
from data_tools.dataset.reader import Store
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.jobs import run_jobs
from data_tools.samples import sample_folder


@pytest.fixture
def manifests(monkeypatch):
    """The manifests that are read."""
    paths = []

    def read_manifest(path, *place):
        paths.append(path)
        return plain(path, *place)

    plain = opening.read_manifest
    monkeypatch.setattr(opening, "read_manifest", read_manifest)
    return paths


def test_stats_read_the_manifest_once(tmp_path, manifests):
    dataset = open_dataset(write_images(tmp_path, samples=12, per_shard=2))
    assert statistics(dataset, processes=1)["samples"] == 12
    assert len(manifests) == 1


def test_tokenize_reads_the_manifest_once_in_each_process(tmp_path, manifests):
    with ShardWriter(tmp_path / "text", max_samples=2) as writer:
        for i in range(12):
            writer.write(f"{i:03d}", {"txt": b"of the people"})
        finish_dataset(writer)
    tokenizer = sample_folder("sotu") / "tokenizer"
    folder = str(tmp_path / "text")
    source = plan_tokenize(folder, open_dataset(folder), tokenizer, "none", [])
    assert sum(len(list(source.read(job))) for job in source.jobs) == 12
    assert len(source.jobs) == 6 and len(manifests) == 2


class Heavy:
    """Work that says whenever it is sent to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.folder / f"{os.getpid()}-{os.urandom(4).hex()}").touch()

    def __call__(self, job):
        return {"samples": job}


def test_work_is_sent_to_each_process_once(tmp_path):
    assert run_jobs(Heavy(tmp_path), range(12), "test", processes=2) == [{"samples": i} for i in range(12)]
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_a_split_by_keys_reads_no_payload(tmp_path, monkeypatch):
    sizes = []

    def read_local(store, shard, offset, size):
        sizes.append(size)
        return plain(store, shard, offset, size)

    plain = Store.read_local
    monkeypatch.setattr(Store, "read_local", read_local)
    dataset = open_dataset(write_tokens(tmp_path / "data", [20_000] * 20))
    parts = split(dataset, 0.3, tmp_path / "train", tmp_path / "test", keys_only=True)
    assert parts.train == len(open_dataset(tmp_path / "train"))
    assert parts.test == len(open_dataset(tmp_path / "test"))
    assert max(sizes) <= 512 and len(sizes) == 20


def test_a_key_behind_a_long_name_is_read_whole(tmp_path):
    key = "folder/" + "x" * 150 + "/名前"
    with ShardWriter(tmp_path) as writer:
        writer.write(key, {"txt": b"a", "cls": b"1"})
        finish_dataset(writer)
    assert list(open_dataset(tmp_path).keys()) == [key]


def test_counts_and_fingerprints_are_computed_once(tmp_path):
    dataset = open_dataset(write_images(tmp_path, samples=12, per_shard=2))
    chosen = dataset.select(np.arange(5))
    for owner, name in ((dataset.manifest, "counts"), (dataset.manifest, "fingerprint"), (chosen, "fingerprint"),
                        (chosen, "counts")):  # fmt: skip
        assert getattr(owner, name) is getattr(owner, name)
