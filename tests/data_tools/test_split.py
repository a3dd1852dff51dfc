"""Splits: copies and groups stand on one side, strata in proportion; what is held out is not trained on."""

import json

import numpy as np
import pytest
from small_data import png

from data_tools.commands.split import split
from data_tools.dataset.content import digest_content
from data_tools.dataset.open import open_dataset
from data_tools.dataset.overlap import count_shared, refuse_shared
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset

SAMPLES, PICTURES, SPEAKERS = 400, 320, 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """400 samples of which every fifth is an exact copy of an earlier one, under another key, label and speaker."""
    folder = tmp_path_factory.mktemp("split") / "data"
    writer = ShardWriter(folder, max_samples=64)
    for i in range(SAMPLES):
        members = {
            "png": png(i % PICTURES, 2),
            "cls": str(i % 10 if i < 300 else 10).encode(),
            "json": json.dumps({"speaker": f"s{i % SPEAKERS}", "number": i}).encode(),
        }
        writer.write(f"session{i % 37}_{i:04d}", members)
    finish_dataset(writer)
    return open_dataset(folder)


def halves(data, tmp_path, **how):
    parts = split(data, 0.25, tmp_path / "train", tmp_path / "test", **how)
    sides = [open_dataset(tmp_path / name) for name in ("train", "test")]
    assert [len(side) for side in sides] == [parts.train, parts.test]
    return [list(side) for side in sides], parts.notes


def contents(tmp_path, name):
    raw = open_dataset(tmp_path / name, DecodeOptions(raw=True))
    return {digest_content({k: v for k, v in sample.items() if k != "__key__"}) for sample in raw}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"salt": "other"},
        {"by": "speaker"},
        {"by_key": "^([a-z0-9]+)_"},
        {"stratify": "label"},
        {"by": "speaker", "stratify": "number // 200"},
    ],
)
def test_exact_copies_never_stand_on_both_sides(data, tmp_path, how):
    (train, test), notes = halves(data, tmp_path, **how)
    assert not contents(tmp_path, "train") & contents(tmp_path, "test")
    assert "80 exact copies" in notes[0]
    grouped = "by" in how or "by_key" in how
    assert grouped or len(train) + len(test) == SAMPLES
    assert 0.1 * SAMPLES < len(test) < 0.4 * SAMPLES
    if "by" in how:
        assert not {s["json"]["speaker"] for s in train} & {s["json"]["speaker"] for s in test}
    if "by_key" in how:
        assert not {s["__key__"].split("_")[0] for s in train} & {s["__key__"].split("_")[0] for s in test}
    chosen = open_dataset(tmp_path / "test").manifest.about["chosen"]
    assert chosen["part"] == "test" and chosen["from"] == data.fingerprint


def test_each_class_gives_the_same_fraction(data, tmp_path):
    (_, test), _ = halves(data, tmp_path, stratify="label")
    held, all_ = (np.bincount([s["label"] for s in samples], minlength=11) for samples in (test, list(data)))
    assert (abs(held - 0.25 * all_) <= 6).all()  # copies have other labels than their originals


def test_a_split_by_keys_alone_tears_copies_apart(data, tmp_path):
    (train, test), _ = halves(data, tmp_path, keys_only=True)
    assert len(train) + len(test) == SAMPLES
    assert contents(tmp_path, "train") & contents(tmp_path, "test")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"by": "speeker"}, "did you mean speaker?"),
        ({"by": "speaker", "by_key": "x"}, "name one of them"),
        ({"by_key": "("}, "not a regular expression"),
        ({"by_key": "nothing"}, "does not match the key"),
        ({"by": "0 * number"}, "one side empty"),
        ({"by": "speaker", "keys_only": True}, "does not go with"),
    ],
)
def test_what_cannot_be_split_is_said_and_leaves_nothing(data, tmp_path, how, message):
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        split(data, 0.25, tmp_path / "train", tmp_path / "test", **how)
    assert not list(tmp_path.iterdir())


def test_samples_in_common_are_found_by_where_they_lie(data, tmp_path):
    split(data, 0.25, tmp_path / "train", tmp_path / "test")
    train, test = open_dataset(tmp_path / "train"), open_dataset(tmp_path / "test")
    assert count_shared(train, test) == 0
    assert count_shared(data, test) == count_shared(test, data) == len(test)
    assert count_shared(data.select(np.arange(100)), data.select(np.arange(90, 300))) == 10
    with pytest.raises(UserError, match=r"data.test=b: [0-9]+ of its samples stand in data.train=a too"):
        refuse_shared(data, test, "data.train=a", "data.test=b")


def test_shards_copied_elsewhere_are_known_by_their_checksums(data, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    split(open_dataset(copy), 0.25, tmp_path / "train", tmp_path / "test")
    test = open_dataset(tmp_path / "test")
    assert count_shared(data, test) == len(test)
