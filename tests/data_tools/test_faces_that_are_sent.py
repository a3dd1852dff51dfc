"""What is handed to other people's loaders and processes is whole, and what they refuse leaves it as it was."""

import itertools
import pickle

import pytest
from small_data import write_images

from data_tools import Loader, Mixture, Stream, StreamDataLoader, StreamDataset, UserError, open_dataset


def number(sample, rng):
    return {"n": sample["json"]["number"], "noise": float(rng.random())}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset(write_images(tmp_path_factory.mktemp("sent"), 30, 11))


def take(loader, count):
    return [step.micro_batches[0]["n"].tolist() for step in itertools.islice(loader, count)]


def test_a_loader_is_sent_while_its_workers_run_and_goes_on_from_where_it_was(data):
    loader = Loader(Stream(data, 3), number, 3, 4, workers=2)
    steps = iter(loader)
    first = [step.micro_batches[0]["n"].tolist() for step in itertools.islice(steps, 2)]
    sent = pickle.loads(pickle.dumps(loader))
    assert first + take(sent, 3) == take(Loader(Stream(data, 3), number, 3, 4), 5)
    sent.close()
    loader.close()


def test_batches_that_come_out_of_order_cannot_be_counted(data):
    face = StreamDataset(Loader(Stream(data, 3), number, 3, 4))
    with pytest.raises(ValueError, match="in_order=False"):
        StreamDataLoader(face, num_workers=2, in_order=False)


def test_a_state_that_is_refused_changes_nothing(data):
    def make(seed, weights):
        return Loader(Mixture({"a": Stream(data, seed), "b": Stream(data, 4)}, weights, 3), number, 3, 4)

    others = make(5, {"a": 1.0, "b": 0.0})
    state = others.state_dict()
    state["sources"]["b"]["keys"] = "repeat"
    loader = make(3, {"a": 0.5, "b": 0.5})
    before = loader.state_dict()
    with pytest.raises(UserError, match="not the one of the saved state"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before
    assert take(loader, 3) == take(make(3, {"a": 0.5, "b": 0.5}), 3)
