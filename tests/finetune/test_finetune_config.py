"""Settings of a fine-tuning job."""

from __future__ import annotations

import pytest

from finetune.__main__ import main
from finetune.config import RECIPES, load_config


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES.glob("*.yaml")])
def test_every_recipe_is_valid(recipe):
    config, origin = load_config(recipe, ["protocol.draws=3", "data.train=sample:digits"])
    assert config.protocol.draws == 3
    assert origin["protocol.draws"] == "command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "did you mean 'steps'"),
        ("task.shfit=3", "did you mean 'shift'"),
        ("protocol.methods=[fulll]", "protocol.methods"),
        ("protocol.labels_per_class=[0]", "must be greater than 0"),
        ("data.label_bins=[3, 1]", "rising"),
        ("scratch.train.steps=9", "same budget"),
        ("by_labels.7.optimizer.lr=1", "has no 7"),
        ("scratch.optimizer.lrr=1", "did you mean 'lr'"),
        ("task.name=nonsense", "task.name='nonsense'"),
    ],
)
def test_wrong_settings_are_one_line(override, message, capfd):
    assert main(["digits", override]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_differences_apply_to_their_run_only():
    overrides = [
        "protocol.labels_per_class=[10, 100]",
        "train.steps=50",
        "by_labels={10: {train: {steps: 20}}}",
        "scratch.optimizer.lr=0.5",
    ]
    config, _ = load_config("digits", overrides)
    assert config.for_run("full", 10).train.steps == config.for_run("scratch", 10).train.steps == 20
    assert config.for_run("full", 100).train.steps == 50
    assert config.for_run("scratch", 100).optimizer.lr == 0.5
    assert config.for_run("full", 100).optimizer.lr == config.optimizer.lr
