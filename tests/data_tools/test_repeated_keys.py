"""Samples that have one key, because every shard counts from 0, draw different random numbers."""

import itertools

import pytest
from small_data import png, write_images

from data_tools import Loader, Mixture, ShardWriter, Stream, evaluation_batches, finish_dataset, open_dataset
from data_tools.stream.unindexed import unindexed_batches, unindexed_samples


def noise(sample, rng):
    return {"noise": float(rng.random())}


def write_shards(folder, shards: int, samples: int, first: int = 0):
    """Shards as the commonest recipe makes them: keys begin anew in each, unless ``first`` keeps them apart."""
    writer = ShardWriter(folder, max_samples=samples)
    for number in range(shards * samples):
        writer.write(f"{number % samples + first * (number // samples):05d}", {"png": png(number)})
    finish_dataset(writer)
    return folder


def draws(loader, samples: int) -> dict[tuple, float]:
    """(key, position) → random number of one epoch."""
    steps = itertools.islice(loader, samples // loader.global_batch_size)
    return {
        (key, step.position + i): float(value)
        for step in steps
        for i, (key, value) in enumerate(zip(step.keys[0], step.micro_batches[0]["noise"], strict=True))
    }


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    return open_dataset(write_shards(tmp_path_factory.mktemp("repeating"), 4, 6))


def test_samples_of_one_key_in_different_shards_draw_different_numbers(repeating):
    assert repeating.keys_repeat
    found = draws(Loader(Stream(repeating), noise, global_batch_size=24), 24)
    assert len({key for key, _ in found}) == 6 and len(set(found.values())) == 24
    mixed = Loader(Mixture({"a": Stream(repeating)}, {"a": 1.0}), noise, global_batch_size=24)
    assert len(set(draws(mixed, 24).values())) == 24
    tested = [
        value for batch, _ in evaluation_batches(repeating, noise, 24) for value in batch["noise"].tolist()
    ]
    assert len(set(tested)) == 24


def test_an_unindexed_source_tells_its_shards_apart(repeating):
    shards = sorted(str(path) for path in repeating.folder.glob("*.tar"))
    batch, keys = next(unindexed_batches(unindexed_samples(shards, buffer=2), noise, 24))
    assert len(set(keys)) == 6 and len(set(batch["noise"].tolist())) == 24


def test_a_run_from_before_goes_on_with_the_numbers_that_it_had(repeating):
    loader = Loader(Stream(repeating), noise, global_batch_size=24)
    state = loader.state_dict()
    assert state["keys"] == "repeat"
    new = draws(loader, 24)
    for old, expected in (({k: v for k, v in state.items() if k != "keys"}, 6), (state, 24)):
        resumed = Loader(Stream(repeating), noise, global_batch_size=24)
        resumed.load_state_dict(old)
        assert len(set(draws(resumed, 24).values())) == expected
        assert resumed.state_dict() == {**old, "position": 24}
    assert len(set(new.values())) == 24


def test_folders_that_were_packed_apart_are_noticed(tmp_path):
    parts = [write_shards(tmp_path / name, 2, 5, first=5) for name in ("a", "b")]
    together = open_dataset([path for part in parts for path in sorted(part.glob("*.tar"))])
    assert together.keys_repeat and not open_dataset(parts[0]).keys_repeat


def test_data_whose_keys_do_not_repeat_draw_as_ever(tmp_path):
    from data_tools.stream.randomness import sample_rng

    dataset = open_dataset(write_images(tmp_path, 12, 4))
    loader = Loader(Stream(dataset), noise, seed=5, global_batch_size=12)
    assert "keys" not in loader.state_dict()
    for (key, _), value in draws(loader, 12).items():
        assert value == pytest.approx(sample_rng(5, 0, key).random())
