"""Whoever takes a stream's batches, and however often: they are the batches of the stream, each once, in its order."""

import itertools
import pickle
import time

import pytest
from bad_server import bad_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import write_images
from torch.utils.data import DataLoader, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from data_tools import Loader, Mixture, Stream, StreamDataLoader, StreamDataset, UserError, open_dataset
from data_tools.order.shuffle import Layout
from data_tools.storage.prefetch import ReadAhead
from data_tools.stream.torch_dataset import _TOLD

BATCH = 4


def number(sample, rng):
    return {"n": sample["json"]["number"], "noise": float(rng.random())}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset(write_images(tmp_path_factory.mktemp("faces"), 30, 11))


@pytest.fixture(scope="module")
def reference(data):
    """What each of the first steps gives."""
    return [
        tell(step.micro_batches[0])
        for step in itertools.islice(Loader(Stream(data, 3), number, 3, BATCH), 60)
    ]


def tell(batch) -> tuple:
    return tuple(batch["n"].tolist()), tuple(batch["noise"].tolist())


def take(batches, count: int) -> list[tuple]:
    return [tell(batch) for batch in itertools.islice(batches, count)]


def make_face(data, state=None) -> StreamDataset:
    face = StreamDataset(Loader(Stream(data, 3), number, 3, BATCH))
    if state is not None:
        face.load_state_dict(state)
    return face


def take_here(data, state, workers, persistent, counts):
    face = StreamDataset(Loader(Stream(data, 3), number, 3, BATCH, workers=workers))
    if state is not None:
        face.load_state_dict(state)
    return [row for count in counts for row in take(face, count)], face.state_dict()


def take_counted(data, state, workers, persistent, counts):
    loader = StreamDataLoader(make_face(data), num_workers=workers, persistent_workers=persistent)
    if state is not None:
        loader.load_state_dict(state)
    return [row for count in counts for row in take(loader, count)], loader.state_dict()


def take_with_torch(data, state, workers, persistent, counts):
    """torch's DataLoader does not count what came from workers, so somebody else does."""
    face, taken = make_face(data, state), []
    loader = DataLoader(face, batch_size=None, num_workers=workers, persistent_workers=persistent)
    for count in counts:
        taken += take(loader, count)
        face.load_state_dict(face.state_dict(steps=count))
    return taken, face.state_dict()


def take_with_torchdata(data, state, workers, persistent, counts):
    """Each time from the state of a loader that is gone."""
    face, taken, kept = make_face(data, state), [], None
    for count in counts:
        options = {"num_workers": workers, "persistent_workers": persistent}
        loader = StatefulDataLoader(make_face(data, state), batch_size=None, **options)
        if kept is not None:
            loader.load_state_dict(kept)
        taken += take(loader, count)
        kept = pickle.loads(pickle.dumps(loader.state_dict()))
    return taken, face.state_dict(steps=sum(counts))


LEGS = st.tuples(
    st.sampled_from([take_here, take_counted, take_with_torch, take_with_torchdata]),
    st.integers(0, 3),  # workers
    st.booleans(),  # persistent
    st.lists(st.integers(0, 4), min_size=1, max_size=3),  # batches taken in one iteration after the other
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(legs=st.lists(LEGS, min_size=1, max_size=3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_batch_comes_once_whoever_takes_it_with_any_workers_stops_and_resumptions(
    data, reference, legs
):
    taken, state = [], None
    for take_leg, workers, persistent, counts in legs:
        rows, state = take_leg(data, state, workers, persistent and workers > 0, counts)
        taken += rows
        assert state["position"] == len(taken) * BATCH
    assert taken == reference[: len(taken)]


@pytest.mark.parametrize("take_leg", [take_counted, take_with_torch, take_with_torchdata])
def test_two_persistent_workers_go_on_where_the_consumer_is(data, reference, take_leg):
    taken, state = take_leg(data, None, 2, True, [3, 2])
    assert taken == reference[:5]
    assert state["position"] == 5 * BATCH


def test_a_state_loaded_amid_an_iteration_holds_from_its_next_batch_on(data, reference):
    loader = StreamDataLoader(make_face(data), num_workers=2)
    batches = iter(loader)
    state = loader.state_dict()
    assert take(batches, 3) == reference[:3]
    loader.load_state_dict(state)
    assert take(batches, 2) == reference[:2]
    assert loader.state_dict()["position"] == 2 * BATCH


@pytest.mark.parametrize(
    "persistent", [False, pytest.param(True, marks=pytest.mark.slow)]
)  # torch takes 5 s to end
def test_batches_that_nobody_counted_are_neither_repeated_nor_skipped_in_silence(data, reference, persistent):
    face = make_face(data)
    loader = DataLoader(face, batch_size=None, num_workers=1, persistent_workers=persistent)
    assert take(loader, 2) == reference[:2]
    with pytest.raises(UserError, match="how many of them came out is not known"):
        next(iter(loader))
    with pytest.raises(UserError, match=r"state_dict\(steps\)"):
        face.state_dict()
    with pytest.raises(UserError, match="StreamDataLoader"):
        next(iter(face))
    face.load_state_dict(face.state_dict(steps=2))
    assert take(loader, 2) == reference[2:4]


def test_a_worker_that_starts_late_begins_where_its_iteration_began(data, reference, monkeypatch):
    begin = StreamDataset.__iter__

    def begin_late(self):
        while get_worker_info() and self._shared[_TOLD] < 2:  # until the state below is loaded
            time.sleep(0.01)
        return begin(self)

    monkeypatch.setattr(StreamDataset, "__iter__", begin_late)
    face = make_face(data)
    loader = DataLoader(face, batch_size=None, num_workers=1, persistent_workers=True)
    iter(loader)
    face.load_state_dict(face.state_dict(steps=0))
    assert take(loader, 2) == reference[:2]


def test_workers_go_on_after_what_was_taken_here(data, reference):
    face = make_face(data)
    assert take(face, 3) == reference[:3]
    assert take(DataLoader(face, batch_size=None, num_workers=2), 2) == reference[3:5]


@pytest.mark.parametrize("workers, persistent", [(0, False), (2, True)])
def test_weights_of_a_mixture_reach_workers_that_run_already(data, workers, persistent):
    def make_loader():
        half = {"a": Stream(data, 3), "b": Stream(data.select(range(7)), 4)}
        return Loader(Mixture(half, {"a": 0.5, "b": 0.5}), number, 3, BATCH)

    reference = make_loader()
    steps = iter(reference)
    expected = [tell(next(steps).micro_batches[0]) for _ in range(3)]
    reference.set_weights({"a": 1.0, "b": 0.0})
    expected += [tell(next(steps).micro_batches[0]) for _ in range(4)]
    loader = StreamDataLoader(
        StreamDataset(make_loader()), num_workers=workers, persistent_workers=persistent
    )
    batches = iter(loader)
    taken = take(batches, 3)
    loader.set_weights({"a": 1.0, "b": 0.0})
    taken += take(batches, 2)
    state = loader.state_dict()
    assert taken + take(loader, 2) == expected
    again = StreamDataLoader(StreamDataset(make_loader()), num_workers=workers, persistent_workers=persistent)
    assert take(again, 1) == expected[:1]
    again.load_state_dict(state)  # with another history than the workers' own
    assert take(again, 2) == expected[5:]


def test_forked_workers_fetch_ahead_though_the_parents_threads_are_gone(
    tmp_path, monkeypatch, reference, data
):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path))
    with bad_server(data.folder) as (url, _):
        stream = Stream(open_dataset(url), 3, layout=Layout(1, 2, 2))
        face = StreamDataset(Loader(stream, number, 3, BATCH))
        cache = stream.dataset._store.cache()
        assert len(take(face, 1)) == 1
        cache.close()
        for segment in cache.folder.glob("[0-9]*"):
            segment.unlink()
        with cache._lock:  # as a thread that fetches may hold it at that moment
            loader = StreamDataLoader(face, num_workers=1, timeout=20)
            batches = iter(loader)
            taken = take(batches, 7)
        cache.close()
    expected = Loader(Stream(data, 3, layout=Layout(1, 2, 2)), number, 3, BATCH, start=BATCH)
    assert taken == [tell(step.micro_batches[0]) for step in itertools.islice(expected, 7)]


class CountingStream(Stream):
    """As a remote one: says how often its future was asked for."""

    planned = 0

    def read_ahead(self):
        return ReadAhead(self.count_needs, self.samples_per_epoch, ahead=1000)

    def count_needs(self, positions):
        type(self).planned += len(positions)
        return iter(())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_plans_its_own_steps_once(data, workers):
    CountingStream.planned = 0
    loader = Loader(CountingStream(data, 3), number, 3, BATCH).share_of_worker(workers - 1, workers)
    steps = list(itertools.islice(loader, 10))
    assert [step.position for step in steps] == [BATCH * (workers * i + workers - 1) for i in range(10)]
    assert CountingStream.planned <= 1000 / workers + 11 * BATCH


@pytest.mark.parametrize("workers", [0, 3])
def test_a_state_loaded_while_workers_run_drops_what_they_prepared(data, reference, workers):
    loader = Loader(Stream(data, 3), number, 3, BATCH, workers=workers)
    steps = iter(loader)
    state = loader.state_dict()
    taken = [next(steps) for _ in range(4)]
    loader.load_state_dict(state)
    again = [next(steps) for _ in range(3)]
    loader.close()
    assert [step.position for step in again] == [0, BATCH, 2 * BATCH]
    assert [tell(step.micro_batches[0]) for step in again] == reference[:3]
    assert [step.keys for step in again] == [step.keys for step in taken[:3]]


def test_two_iterations_of_a_loader_do_not_end_each_others_workers(data):
    loader = Loader(Stream(data, 3), number, 3, BATCH, workers=2)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    first.close()
    assert [next(second).position for _ in range(4)] == [BATCH * i for i in range(2, 6)]
    second.close()
