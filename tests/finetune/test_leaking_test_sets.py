"""What is judged by is not what was learned from."""

import json

import pytest

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from finetune.config import load_config
from finetune.labels import LabelledDataConfig, hold_out, read_labelled
from finetune.protocol import open_bench


def test_a_test_set_with_samples_of_the_training_set_is_refused(job):
    words = [word for word in job if not word.startswith(("data.train", "data.test"))]
    config, _ = load_config("digits", [*words, "data.train=sample:digits", "data.test=sample:digits"])
    with pytest.raises(
        UserError, match=r"data.test=sample:digits: 12,000 of its samples stand in data.train"
    ):
        open_bench(config)


@pytest.mark.parametrize("group", [None, "json.source"])
def test_exact_copies_are_not_held_out_from_their_originals(tmp_path, group):
    writer = ShardWriter(tmp_path)
    for i in range(200):
        source = json.dumps({"source": i % 23}).encode()
        text = f"sample {i % 150} of many".encode()
        writer.write(f"{i:03d}", {"txt": text, "cls": str(i % 2).encode(), "json": source})
    finish_dataset(writer)
    labelled = read_labelled(open_dataset(tmp_path), LabelledDataConfig(group=group))
    train, test = hold_out(labelled, seed=0)
    texts = [{side.dataset[i]["text"] for i in range(len(side))} for side in (train, test)]
    assert not texts[0] & texts[1]
    left_out = 200 - len(train) - len(test)
    assert (left_out > 0) == (group is not None)
    assert group is None or f"{left_out} copies of training samples are left out" in train.notes[-1]
