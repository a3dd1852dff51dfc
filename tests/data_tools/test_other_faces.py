"""The stream in others' loops, and what is left without an index."""

import itertools

import pytest
import torch
from small_data import write_images
from torch.utils.data import DataLoader

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from data_tools.stream.torch_dataset import StreamDataset
from data_tools.stream.unindexed import unindexed_batches, unindexed_samples


def number(sample, rng):
    return {"n": sample["json"]["number"], "noise": torch.from_numpy(rng.random(2))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("faces"), 50, 20)


def face(folder, batch=8):
    return StreamDataset(Loader(Stream(open_dataset(folder), 3), number, 3, batch))


@pytest.mark.parametrize("workers", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_torch_dataloader_gets_the_same_batches_for_any_workers(folder, workers):
    expected = list(itertools.islice(face(folder), 7))
    loader = DataLoader(face(folder), batch_size=None, num_workers=workers)
    for ours, batch in zip(expected, itertools.islice(loader, 7), strict=True):
        assert torch.equal(ours["n"], batch["n"])
        assert torch.equal(ours["noise"], batch["noise"])


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_face_resumes(folder, workers):
    expected = [batch["n"] for batch in itertools.islice(face(folder), 9)]
    dataset = face(folder)
    list(itertools.islice(DataLoader(dataset, batch_size=None, num_workers=workers), 4))
    resumed = face(folder)
    resumed.load_state_dict(dataset.state_dict(steps=4))
    rest = list(itertools.islice(DataLoader(resumed, batch_size=None, num_workers=workers), 5))
    assert all(torch.equal(a, b["n"]) for a, b in zip(expected[4:], rest, strict=True))


def test_torch_face_counts_by_itself_without_workers(folder):
    dataset = face(folder)
    list(itertools.islice(dataset, 4))
    assert dataset.state_dict()["position"] == dataset.state_dict(steps=4)["position"] == 32


def test_unindexed_source_works_and_says_what_is_gone(folder, caplog):
    urls = sorted(str(p) for p in folder.glob("*.tar"))
    samples = list(itertools.islice(unindexed_samples(urls, buffer=10), 100))
    assert sorted(s["__key__"] for s in samples[:50]) == sorted(s["__key__"] for s in samples[50:])
    assert [s["__key__"] for s in samples[:50]] != sorted(s["__key__"] for s in samples[:50])
    assert "no exact resumption" in caplog.text
    batch, keys = next(unindexed_batches(unindexed_samples(urls), number, 16))
    assert [f"{n:06d}" for n in batch["n"]] == keys


def test_unindexed_refuses_pipes_and_runs_nothing(tmp_path):
    with pytest.raises(UserError, match="run a shell"):
        next(unindexed_samples(f"pipe:touch {tmp_path}/evil"))
    with pytest.raises(UserError, match="run a shell"):
        open_dataset(f"pipe:touch {tmp_path}/evil")
    assert not (tmp_path / "evil").exists()


def test_unindexed_needs_a_shard_for_each_rank(folder):
    with pytest.raises(UserError, match="3 shards for 4 ranks"):
        next(unindexed_samples([str(p) for p in folder.glob("*.tar")], world_size=4))
