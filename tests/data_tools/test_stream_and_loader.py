import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import write_images

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.shuffle import Layout
from data_tools.stream.evaluation import evaluation_batches
from data_tools.stream.loader import Loader
from data_tools.stream.randomness import sample_rng
from data_tools.stream.samples import Stream


def transform(sample, rng):
    return {"image": sample["image"], "number": sample["json"]["number"], "noise": rng.random(3)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_images(tmp_path_factory.mktemp("images"), samples=60, per_shard=20))


def reference_keys(stream, count):
    return [stream.sample(p)["__key__"] for p in range(count)]


@given(
    stops=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 4)), min_size=1, max_size=4
    ),
    layout=st.builds(Layout, st.sampled_from([1, 4, 12]), st.integers(1, 9), st.integers(1, 3)),
    seed=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resume_on_other_world_sizes_sees_the_reference_sequence(dataset, stops, layout, seed):
    """Stop after any number of steps, go on with any number of ranks: nothing lost, nothing repeated."""
    batch, taken, state = 12, [], None
    stream = Stream(dataset, seed, layout=layout)
    for world_size, steps in stops:
        per_rank, states = [], []
        for rank in range(world_size):
            loader = Loader(stream, transform, global_batch_size=batch, rank=rank, world_size=world_size)
            if state is not None:
                loader.load_state_dict(state)
            per_rank.append([step.keys[0] for _, step in zip(range(steps), loader, strict=False)])
            states.append(loader.state_dict())
        for step in zip(*per_rank, strict=True):
            taken += [step[i % world_size][i // world_size] for i in range(batch)]
        assert all(s == states[0] for s in states)
        state = states[0]
    assert taken == reference_keys(stream, len(taken))


@pytest.mark.parametrize("workers, kind", [(1, "thread"), (2, "thread"), (8, "thread")])
def test_batches_are_identical_for_any_number_of_workers(dataset, workers, kind):
    assert_same_as_no_workers(dataset, workers, kind)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_batches_are_identical_with_worker_processes(dataset, workers):
    assert_same_as_no_workers(dataset, workers, "process")


def assert_same_as_no_workers(dataset, workers, kind):
    def steps(workers, kind):
        loader = Loader(
            Stream(dataset, 5), transform, 7, 24, micro_batch_size=6, workers=workers, worker_kind=kind
        )
        taken = [step for _, step in zip(range(4), loader, strict=False)]
        loader.close()
        return taken

    for ours, reference in zip(steps(workers, kind), steps(0, "thread"), strict=True):
        assert ours.keys == reference.keys
        assert len(ours.micro_batches) == 4
        for batch, expected in zip(ours.micro_batches, reference.micro_batches, strict=True):
            for name, tensor in expected.items():
                assert torch.equal(batch[name], tensor), name


def test_state_counts_steps_taken_not_prefetched(dataset):
    loader = Loader(Stream(dataset), transform, global_batch_size=10, workers=2)
    steps = iter(loader)
    assert loader.state_dict()["position"] == 0
    next(steps)
    time.sleep(0.05)  # the workers are further by now
    assert loader.state_dict()["position"] == 10
    loader.close()


def test_epoch_tail_goes_on_in_the_next_epochs_first_batch(dataset):
    loader = Loader(Stream(dataset), transform, global_batch_size=50)
    steps = [step for _, step in zip(range(6), loader, strict=False)]
    keys = [key for step in steps for key in step.keys[0]]
    for epoch in range(5):
        assert len(set(keys[epoch * 60 : (epoch + 1) * 60])) == 60
    assert [step.epoch for step in steps] == [0, 0, 1, 2, 3, 4]


def test_changed_data_or_seed_is_refused_by_name(dataset):
    state = Loader(Stream(dataset, seed=0), transform, global_batch_size=4).state_dict()
    with pytest.raises(UserError, match="seed was 0, is 1"):
        Loader(Stream(dataset, seed=1), transform, global_batch_size=4).load_state_dict(state)
    with pytest.raises(UserError, match="fingerprint"):
        Loader(Stream(dataset.select(range(50))), transform, global_batch_size=4).load_state_dict(state)


@pytest.mark.parametrize(
    "settings_, message",
    [
        ({"global_batch_size": 10, "world_size": 4}, "ranks do not divide"),
        ({"global_batch_size": 12, "micro_batch_size": 5}, "use a divisor of 12"),
        ({"global_batch_size": 12, "rank": 3, "world_size": 3}, "rank=3"),
        ({"worker_kind": "fibre"}, "fibre"),
    ],
)
def test_impossible_settings_are_refused(dataset, settings_, message):
    with pytest.raises(UserError, match=message):
        Loader(Stream(dataset), transform, **settings_)


def test_unequal_shapes_are_named(dataset):
    loader = Loader(Stream(dataset), lambda s, r: {"x": np.zeros(s["json"]["number"])}, global_batch_size=4)
    with pytest.raises(UserError, match="field 'x'"):
        next(iter(loader))


def test_randomness_depends_on_seed_epoch_and_key_alone():
    a = sample_rng(0, 0, "a").random(4)
    assert np.array_equal(a, sample_rng(0, 0, "a").random(4))
    for other in [(1, 0, "a"), (0, 1, "a"), (0, 0, "b")]:
        assert not np.array_equal(a, sample_rng(*other).random(4))


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_sees_every_sample_exactly_once(dataset, world_size):
    seen = []
    for rank in range(world_size):
        for batch, keys in evaluation_batches(dataset, transform, 8, rank, world_size):
            assert len(batch["number"]) == len(keys)
            seen += keys
    assert sorted(seen) == [f"{i:06d}" for i in range(60)]


def test_select_keeps_samples_and_changes_the_fingerprint(dataset):
    chosen = [7, 3, 59, 3]
    subset = dataset.select(chosen)
    assert [s["__key__"] for s in subset] == [f"{i:06d}" for i in chosen]
    assert subset.fingerprint != dataset.fingerprint
    assert subset.select([2])[0]["__key__"] == "000059"
    assert dataset.select(range(10, 30)).counts.tolist() == [10, 10, 0]
