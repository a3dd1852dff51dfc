"""A sample without its picture among ones that have it: damage that is counted, not the end of a run."""

import pickle

import pytest
from small_data import png, write_tokens

from data_tools.commands.verify import verify
from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream
from pretrain.encoders.base import field

SAMPLES, WITHOUT = 40, {3, 17}

ASKING = {
    "a key of the sample": lambda sample, rng: {"n": sample["label"], "sum": int(sample["image"].sum())},
    "the field of an objective": lambda sample, rng: {
        "n": field(sample, "label"),
        "sum": int(field(sample, "image").sum()),
    },
}


def write(folder, without):
    writer = ShardWriter(folder)
    for number in range(SAMPLES):
        picture = {} if number in without else {"png": png(number)}
        writer.write(f"{number:04d}", {"cls": b"%d" % number, **picture})
    finish_dataset(writer)
    return open_dataset(folder)


def numbers(stream, transform, **settings):
    loader = Loader(stream, transform, global_batch_size=10, **settings)
    taken = [int(n) for _, step in zip(range(4), loader, strict=False) for n in step.micro_batches[0]["n"]]
    loader.close()
    return taken, loader.ledger.entries


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("workers", [0, 2])
def test_another_stands_in_and_no_other_position_moves(tmp_path, asking, workers):
    stream = Stream(write(tmp_path, WITHOUT))
    wanted = [stream.sample(position)["label"] for position in range(SAMPLES)]
    taken, damages = numbers(stream, ASKING[asking], workers=workers)
    assert {(d.position, d.name, d.shard) for d in damages} == {
        (position, f"{number:04d}", "000000.tar")
        for position, number in enumerate(wanted)
        if number in WITHOUT
    }
    assert all(d.reason == "incomplete: has no image, which is needed" for d in damages)
    assert not WITHOUT & set(taken)
    assert all(a == b for a, b in zip(taken, wanted, strict=True) if b not in WITHOUT)


def test_one_of_a_mixture_is_replaced_by_one_of_its_source(tmp_path):
    streams = {
        name: Stream(write(tmp_path / name, without)) for name, without in (("a", WITHOUT), ("b", set()))
    }
    mixture = Mixture(streams, {"a": 1.0, "b": 0.0})
    _, damages = numbers(mixture, ASKING["a key of the sample"])
    assert sorted(d.name for d in damages) == ["a/0003", "a/0017"]


def test_too_many_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"of \d+ samples are damaged.*incomplete: has no image"):
        numbers(Stream(write(tmp_path, set(range(25)))), ASKING["a key of the sample"])


def test_a_field_that_no_sample_has_is_told_at_once(tmp_path):
    stream = Stream(write(tmp_path, WITHOUT))
    with pytest.raises(UserError, match="has no field 'text'; it has: "):
        numbers(stream, lambda sample, rng: {"n": field(sample, "text")})


def test_a_mistake_in_the_transform_is_no_damage(tmp_path):
    table = {number: number for number in range(SAMPLES) if number != 5}
    with pytest.raises(KeyError):
        numbers(Stream(write(tmp_path, set())), lambda sample, rng: {"n": table[sample["label"]]})
    names = {f"{number:04d}": number for number in range(SAMPLES) if number != 5}
    with pytest.raises(KeyError, match="0005"):
        numbers(Stream(open_dataset(tmp_path)), lambda sample, rng: {"n": names[sample["__key__"]]})


def test_a_document_without_tokens_is_padding(tmp_path):
    write_tokens(tmp_path / "a", [16] * 20, with_length=False)
    writer = ShardWriter(tmp_path / "b")
    tokens = open_dataset(tmp_path / "a")
    for number in range(20):
        raw = tokens._store.read(0, number)[1]["tokens.npy"]
        writer.write(f"{number:04d}", {"txt": b"x"} if number == 7 else {"tokens.npy": bytes(raw)})
    finish_dataset(writer)
    assert PackedStream(Stream(open_dataset(tmp_path / "b")), 16).samples_per_epoch == 19


def test_errors_of_samples_pass_between_processes():
    for error in (
        DamagedSampleError("a.tar", "caf\udce9", "cut"),
        IncompleteSampleError("has none", "image"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
    assert "caf\\udce9" in str(DamagedSampleError("a.tar", "caf\udce9", "cut"))


def write_some(folder, samples, without):
    """Pictures with labels; ``without``: the number of a sample → the member that it lacks."""
    writer = ShardWriter(folder, max_samples=50)
    for number in range(samples):
        members = {"png": png(number), "cls": b"1"}
        members.pop(without.get(number), None)
        writer.write(f"{number:04d}", members)
    finish_dataset(writer)
    return open_dataset(folder)


def test_verify_marks_a_sample_that_lacks_what_all_others_have(tmp_path):
    dataset = write_some(tmp_path / "shards", 300, {70: "png", 299: "cls"})
    before = dataset.fingerprint
    manifest, bad = verify(dataset, processes=1)
    assert bad == [
        ("000001.tar", "0070", "incomplete: has no image, as all others have"),
        ("000005.tar", "0299", "incomplete: has no label, as all others have"),
    ]
    marked = open_dataset(tmp_path / "shards")
    assert marked.marked.tolist() == [70, 299] and marked.fingerprint == before
    taken = [sample["__key__"] for sample in marked]
    assert len(taken) == 298 and "0070" not in taken
    manifest, _ = verify(open_dataset(tmp_path / "shards"), processes=1, exclude=tmp_path / "next")
    assert manifest.counts.sum() == 298


def test_verify_leaves_data_of_which_some_have_no_label(tmp_path):
    dataset = write_some(tmp_path / "shards", 300, dict.fromkeys(range(0, 300, 20), "cls"))
    manifest, bad = verify(dataset, processes=1)
    assert bad == [] and manifest.marks is None
