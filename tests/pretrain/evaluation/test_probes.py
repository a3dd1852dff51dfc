"""Probes: what neighbours vote for, and samples in their order whatever ranks share them."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch

from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.config.load import load_config
from pretrain.config.sections import ProbeConfig, TrainConfig
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.few_shot import few_shot_accuracies
from pretrain.evaluation.probes import OnlineProbe, embed, knn_accuracy, linear_accuracy, number_classes
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_objective
from tests.tiny_run import SMALL


def test_neighbours_vote_where_all_similarities_are_negative():
    train = torch.tensor([[-1.0, 0.1], [-1.0, 0.2], [-1.0, -0.3]])
    test = torch.tensor([[1.0, 0.0]])
    labels, answer = torch.tensor([1, 1, 2]), torch.tensor([1])
    assert knn_accuracy(train, labels, test, answer, neighbours=3) == 1.0
    assert knn_accuracy(train, torch.tensor([1, 2, 2]), test, torch.tensor([2]), neighbours=3) == 1.0
    assert knn_accuracy(train, labels, -test, answer, neighbours=3) == 1.0


def test_features_and_labels_stand_in_the_order_of_the_data_set():
    config, _ = load_config("mae_digits", [*SMALL])
    objective = build_objective(config, first_of(open_sources(config.data)))
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    dataset = open_dataset("sample:digits_test").select([5, 900, 17, 3, 44])
    with engine.evaluating(objective):
        features, labels = embed(dataset, objective, engine, "label", batch_size=2)
        view = objective.view(dataset[1])
        second = objective.encode({name: torch.as_tensor(value)[None] for name, value in view.items()}).pooled
    assert labels == [dataset[i]["label"] for i in range(5)]
    assert features.shape == (5, 16)
    torch.testing.assert_close(features[1], second[0], atol=1e-5, rtol=1e-5)
    assert number_classes(["b", "a", "b", 3]).tolist() == [0, 1, 0, 2]
    told = (
        r"^probe.test=shards: sample '\S+': has no field 'party'; it has: image, label; name .* probe.label"
    )
    with pytest.raises(UserError, match=told):
        embed(dataset, objective, engine, "party", "probe.test=shards")


def write_digits(folder, labels):
    """Embedded digits with other labels; those whose label is None are left out."""
    dataset, writer = open_dataset("sample:digits", DecodeOptions(raw=True)), ShardWriter(folder)
    for i, label in enumerate(labels):
        if label is not None:
            writer.write(f"{i:06d}", {"png": bytes(dataset[i]["png"]), "cls": str(label).encode()})
    finish_dataset(writer)
    return str(folder)


def test_samples_without_a_label_count_in_no_probe(tmp_path, caplog):
    config, _ = load_config("mae_digits", [*SMALL])
    objective = build_objective(config, first_of(open_sources(config.data)))
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    digits = open_dataset("sample:digits")
    numbers = [digits[i]["label"] if i % 3 else -1 for i in range(60)]
    found = []
    for folder, labels in (
        ("some", numbers),
        ("labelled", [None if number < 0 else number for number in numbers]),
    ):
        place = write_digits(tmp_path / folder, labels)
        probe = OnlineProbe(ProbeConfig(every=1, train=place, test=place))
        with engine.evaluating(objective):
            found.append([probe.measure(objective, engine) for _ in range(2)])
    assert found[0] == found[1]
    told = [record.getMessage() for record in caplog.records if "no label" in record.getMessage()]
    places = [f"probe.{part}={tmp_path / 'some'}" for part in ("train", "test")]
    assert told == [f"{place}: 20 of 60 samples have no label and are left out" for place in places]
    none = write_digits(tmp_path / "none", [-1] * 3)
    with engine.evaluating(objective), pytest.raises(UserError, match="none of its 3 samples has a label"):
        OnlineProbe(ProbeConfig(every=1, train=none, test=none)).measure(objective, engine)


def test_classifiers_compute_in_fp32_whatever_the_encoder_computes_in():
    settings = ["train.precision=bf16", "probe.train_samples=300", "probe.test_samples=200"]
    config, _ = load_config("mae_digits", [*SMALL, *settings])
    objective = build_objective(config, first_of(open_sources(config.data)))
    engine = DDPEngine(config.train, World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    probe = OnlineProbe(config.probe)
    with engine.evaluating(objective):
        found = probe.measure(objective, engine)
        train, train_labels = embed(probe.train, objective, engine, "label")
        test, test_labels = embed(probe.test, objective, engine, "label")
    numbers = number_classes([*train_labels, *test_labels])
    parts = train, numbers[:300], test, numbers[300:]
    shots = few_shot_accuracies(*parts, config.probe.few_shot)
    assert found == {
        "knn": knn_accuracy(*parts, config.probe.neighbours),
        "linear": linear_accuracy(*parts),
        "few_shot": mean(shots),
        "few_shot_sd": stdev(shots),
    }
