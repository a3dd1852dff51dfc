"""An attribute's classes are all that there are, and an answer that no head knows is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.stream.collate import collate
from data_tools.stream.randomness import sample_rng
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.objectives import attribute_answers
from pretrain.run.run import build_objective
from tests.data_tools.small_data import png
from tests.tiny_run import SMALL

CLASSES = 1500
PLAIN = [*SMALL[:3], "encoder.image_size=8", "encoder.patch_size=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """3,000 pictures of 1,500 kinds; one in ten has no kind."""
    folder = tmp_path_factory.mktemp("data") / "kinds"
    writer = ShardWriter(folder, max_samples=1000)
    picture = png(0)
    kinds = np.random.default_rng(0).permutation(np.arange(3000) % CLASSES)
    for i, kind in enumerate(kinds.tolist()):
        answer = {} if i % 10 == 0 else {"kind": f"k{kind}", "size": i}
        writer.write(
            f"{i:06d}", {"png": picture, "json": json.dumps(answer).encode(), "cls": b"%d" % (i % 12)}
        )
    finish_dataset(writer)
    return folder


def build(folder, attributes: str):
    config, _ = load_config(
        "mae_digits",
        [*PLAIN, f"data.path={folder}", f"objective={{name: attribute, attributes: {attributes}}}"],
    )
    return config, build_objective(config, first_of(open_sources(config.data)))


def batch_of(objective, dataset, indices):
    samples = [dataset[i] for i in indices]
    return collate([objective.example(s, sample_rng(0, 0, s["__key__"])) for s in samples])


def test_rare_classes_are_found_counted_and_looked_for_once(folder, monkeypatch):
    dataset = open_dataset(folder)
    present = {s["json"].get("kind") for s in dataset} - {None}
    _, objective = build(folder, "{kind: {field: json.kind}}")
    assert set(objective.answers["kind"].classes) == present
    assert objective.roles["heads"].layers["kind"].out_features == len(present) > 1300
    batch = batch_of(objective, dataset, range(100))
    assert batch["valid/kind"].sum() == 90
    assert batch["unknown/kind"].sum() == 0

    def never(*_):
        raise AssertionError("the data set is looked at again")

    monkeypatch.setattr(attribute_answers, "scan", never)
    _, again = build(folder, "{kind: {field: json.kind}}")
    assert again.answers == objective.answers


def test_an_answer_that_no_head_knows_is_counted_and_not_learnt(folder):
    dataset = open_dataset(folder)
    named = sorted({s["json"]["kind"] for s in dataset.select(range(1, 4))})
    _, objective = build(folder, f"{{kind: {{field: json.kind, classes: {json.dumps(named)}}}}}")
    batch = batch_of(objective, dataset, range(1, 10))
    assert batch["valid/kind"].tolist() == [1.0] * 3 + [0.0] * 6
    phase = objective.phases()[0]
    assert objective.count(phase, batch) == 3
    total, count = objective.loss(phase, batch).metrics["kind_unknown"]
    assert (float(total), float(count)) == (6.0, 9.0)


def test_labels_are_those_that_the_manifest_names(folder, monkeypatch):
    assert set(build(folder, "{label: {field: label}}")[1].answers["label"].classes) == set(range(12))
    dataset = open_dataset(folder)
    monkeypatch.setitem(dataset.manifest.about, "classes", [f"class {i}" for i in range(13)])
    monkeypatch.setattr(attribute_answers, "scan_once", lambda *_: pytest.fail("a scan"))
    spec = attribute_answers.AttributeSpec(field="label")
    found = attribute_answers.find_answers({"label": spec}, dataset)["label"]
    assert found.classes == {value: i for i, value in enumerate(sorted(range(13), key=str))}


@pytest.mark.parametrize("name", ["image", "tokens", "kind_valid"])
def test_an_attribute_may_be_called_as_what_an_encoder_sees(folder, name):
    attributes = f"{{{name}: {{field: json.kind}}, kind: {{field: json.kind}}}}"
    _, objective = build(folder, attributes)
    sample = open_dataset(folder)[1]
    example = objective.example(sample, sample_rng(0, 0, "x"))
    assert np.array_equal(example["image"], objective.view(sample)["image"])
    batch = collate([example])
    assert objective.count(objective.phases()[0], batch) == 2
    assert objective.loss(objective.phases()[0], batch).sum.item() > 0


def test_a_name_that_torch_keeps_for_itself_and_a_field_of_many_values_are_refused(folder):
    with pytest.raises(UserError, match=r"attributes.type: torch has this name .* its_type .* json.kind"):
        build(folder, "{type: {field: json.kind}}")
    with pytest.raises(UserError, match="json holds a dict, not a class"):
        build(folder, "{kind: {field: json}}")
    with pytest.raises(UserError, match=r"no sample has the field 'json\.colour'"):
        build(folder, "{kind: {field: json.colour}}")
