"""A batch holds what its examples held, or the error says which field of which samples it cannot hold."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from small_data import write_images

from data_tools import Loader, Pad, Stream, UserError, evaluation_batches, open_dataset
from data_tools.stream.collate import FieldError, collate


def batch_of(*values):
    return collate([{"x": value} for value in values])["x"]


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        ((3, 3.7), torch.float32, [3.0, 3.7]),
        ((True, False), torch.bool, [True, False]),
        ((np.bool_(True), False), torch.bool, [True, False]),
        ((True, 2), torch.int64, [1, 2]),
        ((np.bool_(True), 2), torch.int64, [1, 2]),
        ((np.int8(3), 2**40), torch.int64, [3, 2**40]),
        ((1, np.float64(0.5), True), torch.float32, [1.0, 0.5, 1.0]),
    ],
)
def test_numbers_get_a_type_that_holds_all_of_them(values, dtype, expected):
    for order in (values, values[::-1]):
        found = batch_of(*order)
        assert found.dtype == dtype
        assert torch.equal(found, torch.tensor(expected[:: 1 if order is values else -1], dtype=dtype))


def test_arrays_get_a_type_that_holds_all_of_them():
    found = batch_of(np.arange(3, dtype=np.uint8), np.array([0.5, 1, 2], dtype=np.float32))
    assert found.dtype == torch.float32 and found[1, 0] == 0.5
    assert batch_of(torch.arange(2), np.arange(2)).tolist() == [[0, 1], [0, 1]]


def test_a_measurement_may_be_nan():
    assert batch_of(0.5, math.nan).isnan().tolist() == [False, True]


def test_texts_and_bytes_become_lists():
    assert batch_of("a", "bc") == ["a", "bc"]
    assert batch_of(b"a", b"") == [b"a", b""]


@pytest.mark.parametrize(
    "examples, message",
    [
        ([{"x": 1}, {"x": 1, "y": 2}], "field 'y': is missing in number 0;"),
        ([{"x": 1, "y": 2}, {"x": 1}], "field 'y': is missing in number 1;"),
        ([{"x": 1}, {"x": None}], "field 'x': is missing in number 1;"),
        ([{"x": 1}, {"x": math.nan}, {"x": 1}], r"field 'x': is a whole .* but not a number \(NaN\) in number 1;"),
        ([{"x": 1}, {"x": "1"}, {"x": 1}], "field 'x': is a number, but text in number 1;"),
        ([{"x": {}}], "field 'x': is a dict in number 0;"),
        ([{"x": 1}, {"x": np.uint64(2**63)}], "does not fit into 64 bits in number 1;"),
        ([{"x": math.inf}, {"x": -1e39}], "does not fit into float32 in number 1;"),
        ([{"x": 0.5}, {"x": 10**400}], "does not fit into float32 in number 1;"),
        ([{"x": np.zeros(3)}, {"x": np.zeros(5)}], r"shape \(3,\) first, but \(5,\) in number 1; .*Pad\(\('x',\)\)"),
        ([{"x": np.array(["a"])}], "field 'x': has no torch type"),
        ([{"x": 1.0}] + [{}] * 6, "number 1, number 2, number 3, number 4 and 2 more;"),
    ],
)  # fmt: skip
def test_what_cannot_be_batched_names_field_and_samples(examples, message):
    with pytest.raises(FieldError, match=message) as caught:
        collate(examples)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_arrays_of_different_lengths_are_padded_where_that_is_asked_for():
    examples = [{"x": np.ones((n, 2), dtype=np.int16), "label": n} for n in (2, 0, 3)]
    batch = pickle.loads(pickle.dumps(Pad(("x",), value=-1)))(examples)
    assert batch["x"].shape == (3, 3, 2) and batch["x"].dtype == torch.int16
    assert batch["x_length"].tolist() == batch["label"].tolist() == [2, 0, 3]
    assert [int((rows == 1).all(1).sum()) for rows in batch["x"]] == [2, 0, 3]
    assert int((batch["x"] == -1).sum()) == 2 * (1 + 3)
    with pytest.raises(UserError, match="field 'label': is a number and cannot be padded"):
        Pad(("x", "label"))(examples)
    with pytest.raises(UserError, match="field 'y': is missing"):
        Pad(("x", "y"))(examples)


@pytest.mark.parametrize(
    "dtype, value", [("uint16", -100), ("uint8", 256), ("int64", 0.5), ("bool", 2), ("int32", math.nan)]
)
def test_padding_that_a_field_cannot_hold_is_refused_and_not_taken_for_another(dtype, value):
    examples = [{"x": np.zeros(n, dtype=dtype)} for n in (1, 2)]
    with pytest.raises(
        UserError, match=rf"field 'x': is torch.{dtype}, which does not hold the padding {value} in"
    ):
        Pad(("x",), value)(examples)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_images(tmp_path_factory.mktemp("collate"), 12, 5))


def lose_seven(sample, rng):
    return {} if sample["json"]["number"] == 7 else {"x": 1}


def fail_at_seven(kind, sample, rng):
    if sample["json"]["number"] == 7:
        raise kind("no such thing")
    return {"x": 1}


def test_a_stream_names_the_samples_that_it_cannot_batch_by_their_keys(dataset):
    with pytest.raises(UserError, match="field 'x': is missing in 000007;"):
        next(iter(Loader(Stream(dataset), lose_seven, global_batch_size=12)))
    with pytest.raises(UserError, match="field 'x': is missing in 000007;"):
        list(evaluation_batches(dataset, lose_seven, 12))


def test_what_a_transform_raises_names_sample_and_shard(dataset):
    for kind, workers in ((KeyError, 0), (KeyError, 1), (UserError, 0)):
        transform = partial(fail_at_seven, kind)
        loader = Loader(Stream(dataset), transform, global_batch_size=12, workers=workers)
        with pytest.raises(kind) as caught:
            next(iter(loader))
        assert "'000007' of 000001.tar" in caught.value.__notes__[0]
    assert "(in the sample '000007' of 000001.tar)" in str(caught.value)
