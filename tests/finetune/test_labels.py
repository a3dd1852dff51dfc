"""Labels from any field, and draws that are balanced, nested and decided by the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from finetune.labels import (
    UNKNOWN,
    LabelledDataConfig,
    bin_names,
    draw,
    drawable,
    hold_out,
    label_of,
    limit,
    read_labelled,
)

numbers = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array)


@given(numbers, st.integers(1, 30), st.integers(0, 5), st.integers(0, 20))
def test_draw_takes_the_same_number_of_each_class_or_all_there_are(labels, size, seed, number):
    chosen = draw(labels, size, seed, number)
    assert len(set(chosen.tolist())) == len(chosen)
    for c in np.unique(labels):
        assert (labels[chosen] == c).sum() == min(size, (labels == c).sum())


@given(numbers, st.integers(1, 10), st.integers(0, 5))
def test_larger_draw_contains_the_smaller_one_of_its_number(labels, size, number):
    assert set(draw(labels, size, 0, number).tolist()) <= set(draw(labels, 2 * size, 0, number).tolist())


def test_draws_differ_by_number_and_seed_and_repeat_exactly():
    labels = np.arange(1000) % 10
    first = draw(labels, 10, 0, 0)
    assert np.array_equal(first, draw(labels, 10, 0, 0))
    assert not np.array_equal(first, draw(labels, 10, 0, 1))
    assert not np.array_equal(first, draw(labels, 10, 1, 0))


def test_value_on_a_boundary_belongs_to_what_follows():
    config = LabelledDataConfig(label="json.year", label_bins=(1850, 1900))
    names = [label_of({"__key__": "a", "json": {"year": y}}, config) for y in (1849, 1850, 1899, 1900)]
    assert names == ["< 1850", "1850 to 1900", "1850 to 1900", "≥ 1900"]
    assert bin_names((1850, 1900)) == ["< 1850", "1850 to 1900", "≥ 1900"]


def test_binned_classes_stand_in_the_order_of_their_bins(few_digits):
    config = LabelledDataConfig(label="json.year", label_bins=(1850, 1900))
    labelled = read_labelled(open_dataset(few_digits[0]), config)
    assert labelled.classes == ["< 1850", "1850 to 1900", "≥ 1900"]
    assert np.bincount(labelled.numbers).tolist() == [50, 50, 100]


def test_samples_without_a_label_are_left_out_and_the_rest_keep_theirs(few_digits):
    labelled = read_labelled(open_dataset(few_digits[0]), LabelledDataConfig(label="json.parity"))
    assert labelled.classes == ["even", "odd"]
    assert len(labelled) == 180
    for i in range(len(labelled)):
        sample = labelled.dataset[i]
        assert labelled.number(sample) == labelled.numbers[i] == sample["label"] % 2


def test_class_that_no_training_sample_has_is_never_right(few_digits):
    labelled = read_labelled(open_dataset(few_digits[1]), LabelledDataConfig(), classes=[0, 1])
    assert {labelled.number(labelled.dataset[i]) for i in range(len(labelled))} == {0, 1, UNKNOWN}


def test_missing_label_field_is_named_with_those_there_are(few_digits):
    with pytest.raises(UserError, match=r"no field 'lable'; it has: image, json, label"):
        read_labelled(open_dataset(few_digits[0]), LabelledDataConfig(label="lable"))


def test_bins_of_something_that_is_no_number_are_refused(few_digits):
    with pytest.raises(UserError, match="is not a number"):
        read_labelled(open_dataset(few_digits[0]), LabelledDataConfig(label="json.parity", label_bins=(1.0,)))


def test_sizes_that_the_data_do_not_allow_are_told(few_digits):
    labelled = read_labelled(open_dataset(few_digits[0]), LabelledDataConfig())
    counts = np.bincount(labelled.numbers)
    sizes, notes = drawable(labelled, (5, int(counts.max()), 1000))
    assert sizes == [5, counts.max()]
    assert "all there are of" in notes[0]
    assert "left out" in notes[1]


def test_held_out_groups_stand_on_one_side_only(few_digits):
    config = LabelledDataConfig(label="json.parity", group="label", holdout=0.4)
    train, test = hold_out(read_labelled(open_dataset(few_digits[0]), config), seed=0)
    groups = [{side.dataset[i]["label"] for i in range(len(side))} for side in (train, test)]
    assert groups[0] | groups[1] == set(range(10))
    assert not groups[0] & groups[1]
    assert len(train) + len(test) == 180
    assert any("no label on both sides" in note for note in train.notes)


def test_hold_out_that_empties_a_class_is_refused(few_digits):
    config = LabelledDataConfig(group="label", holdout=0.4)
    with pytest.raises(UserError, match="leaves a class without samples"):
        hold_out(read_labelled(open_dataset(few_digits[0]), config), seed=0)


def test_a_limited_test_set_is_the_same_each_time_and_says_so(few_digits):
    labelled = read_labelled(open_dataset(few_digits[1]), LabelledDataConfig())
    few, again, other = (limit(labelled, 20, seed) for seed in (0, 0, 1))
    assert few.numbers.tolist() == again.numbers.tolist() != other.numbers.tolist()
    assert len(few) == 20
    assert few.notes == ("data.test_samples: judged by 20 of 101 test samples",)
    assert limit(labelled, 101, 0) is limit(labelled, None, 0) is labelled
