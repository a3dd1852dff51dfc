"""-1 in a .cls member is a sample without a class, for all who ask; other negative numbers are damage."""

from __future__ import annotations

import numpy as np
import pytest
from small_data import png

from data_tools.commands.split import split
from data_tools.commands.stats import statistics
from data_tools.commands.verify import verify
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeOptions
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from finetune.labels import LabelledDataConfig, read_labelled
from pretrain.objectives.attribute_answers import AttributeSpec, answer, scan


@pytest.fixture
def numbered(tmp_path):
    """Makes a data set with a label for each number given."""

    def make(labels):
        writer = ShardWriter(tmp_path / "shards")
        for i, label in enumerate(labels):
            writer.write(f"{i:03d}", {"png": png(i), "cls": str(label).encode()})
        finish_dataset(writer, {"classes": ["cat", "dog"]})
        return open_dataset(tmp_path / "shards")

    return make


def test_minus_one_is_no_class_for_anyone(numbered):
    dataset = numbered([0, -1, 1, 1, -1, 0])
    assert [dataset[i]["label"] for i in range(6)] == [0, None, 1, 1, None, 0]
    labelled = read_labelled(dataset, LabelledDataConfig(), names=["cat", "dog"])
    assert labelled.classes == ["cat", "dog"] and labelled.numbers.tolist() == [0, 1, 1, 0]
    assert "2 of 6 samples have no label" in labelled.notes[0]
    assert answer(dataset[1], AttributeSpec(field="label")) is None
    assert scan(dataset, "label") == {"classes": [0, 1], "missing": 2, "damaged": 0}
    assert len(dataset.where("label == None and class_name == None")) == 2
    assert len(dataset.where("label < 1")) == 2
    summary = statistics(dataset, processes=1)
    assert summary["labels"] == {"cat": 2, "dog": 2} and summary["unlabelled"] == 2


def test_a_stratified_split_takes_unlabelled_samples_as_a_stratum_of_their_own(numbered, tmp_path):
    dataset = numbered([0] * 40 + [-1] * 40)
    split(dataset, 0.25, tmp_path / "train", tmp_path / "test", stratify="label", processes=1)
    test = open_dataset(tmp_path / "test")
    labels = [test[i]["label"] for i in range(len(test))]
    assert labels.count(0) == labels.count(None) == 10


def test_another_negative_number_is_damage_with_key_and_shard(numbered):
    dataset = numbered([0, 1, -2])
    told = r"000000\.tar: sample 002: \.cls: not a class number: -2; classes are numbered from 0, and -1"
    with pytest.raises(DamagedSampleError, match=told):
        dataset[2]
    _, bad = verify(dataset, processes=1)
    assert [(shard, key) for shard, key, _ in bad] == [("000000.tar", "002")]
    assert np.array_equal(open_dataset(dataset.folder, DecodeOptions(raw=True)).marked, [2])
