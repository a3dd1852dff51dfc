"""Any ranks, workers, batches, sources, packing, and stops: the union over ranks is the reference sequence."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import write_tokens

from data_tools.dataset.open import open_dataset
from data_tools.order.shuffle import Layout
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("property")
    lengths = np.random.default_rng(0).integers(1, 40, 150).tolist()
    return [
        open_dataset(write_tokens(folder / "a", lengths[:90], per_shard=25)),
        open_dataset(write_tokens(folder / "b", lengths[90:], per_shard=17)),
    ]


def make_stream(datasets, kind: str, layout: Layout, seed: int):
    streams = [Stream(dataset, seed + i, layout=layout) for i, dataset in enumerate(datasets)]
    if kind == "one source":
        return streams[0]
    if kind == "packed":
        return PackedStream(streams[0], 32)
    if kind == "mixture":
        return Mixture({"a": streams[0], "b": streams[1]}, {"a": 0.6, "b": 0.4}, seed)
    packed = {name: PackedStream(stream, 32) for name, stream in zip("ab", streams, strict=True)}
    return Mixture(packed, {"a": 0.2, "b": 0.8}, seed, by="token")


def length_and_noise(sample, rng):
    return {"tokens": int(sample["tokens"].sum()), "noise": float(rng.random())}


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["one source", "packed", "mixture", "mixture of packed"])
def test_union_over_ranks_is_the_reference_whatever_stops_and_world_sizes(datasets, kind, data):
    seed = data.draw(st.integers(0, 3))
    layout = data.draw(st.builds(Layout, st.sampled_from([1, 4, 12]), st.integers(1, 9), st.integers(1, 3)))
    micro = data.draw(st.integers(1, 3))
    legs = data.draw(
        st.lists(st.tuples(st.integers(1, 16), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=3)
    )
    taken: list[tuple] = []
    state = None
    batch = micro * int(np.lcm.reduce([ranks for ranks, _, _ in legs]))
    if batch > 300:
        legs, batch = legs[:1], micro * legs[0][0]
    for world_size, steps, workers in legs:
        shares, states = [], []
        for rank in range(world_size):
            loader = Loader(
                make_stream(datasets, kind, layout, seed), length_and_noise, seed, batch,
                rank=rank, world_size=world_size, workers=workers if rank == 0 else 0,
            )  # fmt: skip
            if state is not None:
                loader.load_state_dict(state)
            mine = [step for _, step in zip(range(steps), loader, strict=False)]
            loader.close()
            assert len(mine) == steps
            shares.append(
                [list(zip(s.keys[0], s.micro_batches[0]["tokens"].tolist(), s.micro_batches[0]["noise"].tolist(),
                          strict=True)) for s in mine]
            )  # fmt: skip
            states.append(loader.state_dict())
        assert all(s == states[0] for s in states)
        assert len(str(states[0])) < 2000  # O(1): a few numbers, whatever was taken
        for step in range(steps):
            taken += [shares[(len(taken) + i) % world_size][step][i // world_size] for i in range(batch)]
        state = states[0]
    reference = Loader(make_stream(datasets, kind, layout, seed), length_and_noise, seed, 1)
    expected = [step for _, step in zip(range(len(taken)), reference, strict=False)]
    assert [t[0] for t in taken] == [step.keys[0][0] for step in expected]
    assert [t[1] for t in taken] == [int(step.micro_batches[0]["tokens"][0]) for step in expected]
    assert [t[2] for t in taken] == [float(step.micro_batches[0]["noise"][0]) for step in expected]
