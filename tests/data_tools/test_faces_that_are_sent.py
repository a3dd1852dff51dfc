"""What is handed to other people's loaders and processes is whole, and what they refuse leaves it as it was."""

import itertools
import os
import pickle
import signal
import threading

import pytest
from small_data import write_images, write_tokens

from data_tools import Loader, Mixture, Stream, StreamDataLoader, StreamDataset, UserError, open_dataset
from data_tools.dataset.pieces import TokenReader
from data_tools.storage.handles import Recent


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


def ask_in_a_forked_process(what):
    """Whether a process that is forked now does ``what`` within seconds."""
    child = os.fork()
    if not child:
        signal.alarm(5)
        what()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_waits_for_no_value_that_a_thread_of_its_parent_was_making():
    begun, end = threading.Event(), threading.Event()

    def make(key):
        begun.set()
        if threading.current_thread() is thread:
            end.wait()
        return key

    recent = Recent(make, 2)
    thread = threading.Thread(target=recent, args=("sidecar",))
    thread.start()
    begun.wait()
    assert ask_in_a_forked_process(lambda: recent("sidecar"))
    end.set()
    thread.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_reads_documents_though_a_thread_of_its_parent_was_keeping_one(tmp_path):
    reader = pickle.loads(pickle.dumps(TokenReader(open_dataset(write_tokens(tmp_path, [5000] * 3)))))
    with reader._lock:
        assert ask_in_a_forked_process(lambda: reader._keep((0, 0), reader._read_whole(0, 0)))
