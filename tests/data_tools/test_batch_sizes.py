"""A batch size that grows changes how many samples a step has, and never which samples come next."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.order.batch_sizes import BatchSizes
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from tests.data_tools.small_data import write_images

WARMUP = [(4, 3), (8, 2)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return Stream(open_dataset(write_images(tmp_path_factory.mktemp("data"))), seed=3)


def loader(stream, **settings):
    settings = {"batch_size_warmup": WARMUP, **settings}
    return Loader(stream, lambda s, r: {"n": np.int64(s["__key__"] != "")}, global_batch_size=16, **settings)


def keys(stream, steps, world_size=1, **settings):
    """For each step the keys of all ranks, sorted."""
    ranks = [iter(loader(stream, rank=rank, world_size=world_size, **settings)) for rank in range(world_size)]
    found = []
    for _ in range(steps):
        shares = [[key for micro in step.keys for key in micro] for step in map(next, ranks)]
        found.append(sorted(key for share in shares for key in share))
    return found


def test_sizes_follow_the_stages():
    sizes = BatchSizes(16, ((4, 3), (8, 2)))
    positions, seen = [0], []
    for _ in range(8):
        seen.append(sizes.at(positions[-1]))
        positions.append(positions[-1] + seen[-1])
    assert seen == [4, 4, 4, 8, 8, 16, 16, 16]
    for steps, samples in enumerate(positions):
        assert sizes.steps_for(samples) == steps
        assert sizes.steps_for(samples + 1) == steps + 1


@pytest.mark.parametrize("settings", [{}, {"world_size": 2}, {"world_size": 4}, {"workers": 2}, {"micro_batch_size": 2},
                                      {"micro_batch_size": 16}])  # fmt: skip
def test_the_order_of_samples_is_the_one_without_a_warmup(stream, settings):
    found = keys(stream, 8, **settings)
    assert [len(step) for step in found] == [4, 4, 4, 8, 8, 16, 16, 16]
    order = iter(loader(stream, batch_size_warmup=()))
    expected = [key for _ in range(5) for key in next(order).keys[0]]
    start = 0
    for step in found:
        assert step == sorted(expected[start : start + len(step)])
        start += len(step)


def test_it_resumes_in_the_middle_of_the_warmup(stream):
    whole = keys(stream, 8)
    first = loader(stream)
    steps = iter(first)
    for _ in range(4):
        next(steps)
    state = first.state_dict()
    second = loader(stream, workers=2)
    second.load_state_dict(state)
    resumed = [
        sorted(key for micro in step.keys for key in micro) for step, _ in zip(second, range(4), strict=False)
    ]
    assert resumed == whole[4:]


def test_a_stage_that_ranks_cannot_share_is_refused(stream):
    with pytest.raises(UserError, match="global_batch_size=4: 8 ranks do not divide it"):
        loader(stream, world_size=8)
