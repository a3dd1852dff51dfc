"""A run whose images become views on the device: training, pictures, held-out losses and replays all see views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.config.show import format_config
from pretrain.data import build_loader, first_of, open_sources
from pretrain.engine.base import World
from pretrain.run.batch import show_batch
from pretrain.run.replay import replay
from pretrain.run.run import build_objective, run
from pretrain.tracking.metrics import read_metrics
from tests.processes import QUIET
from tests.tiny_run import SMALL

SHORT = (*SMALL, "objective.flip=true", "objective.crop_scale=[0.3, 1]", "train.global_batch_size=8",
         "train.micro_batch_size=4", "train.steps=2", "tracking.log_every=1", *QUIET, "tracking.progress=false",
         "data.validation=sample:digits_test", "validation.samples=8", "validation.every=2")  # fmt: skip


def first_batches(place, **loader):
    """The micro-batches of two steps as losses take them."""
    config, _ = load_config(
        "mae_digits", [*SHORT, f"augment.on={place}", *(f"data.{k}={v}" for k, v in loader.items())]
    )
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    loader = build_loader(config, objective, sources, World())
    steps = iter(loader)
    batches = [objective.arrive(batch) for _ in range(2) for batch in next(steps).micro_batches]
    loader.close()
    return batches


def test_crops_are_those_of_the_host_but_for_rounding_to_bytes():
    """Pillow rounds twice: after its rows, and after its columns."""
    for host, device in zip(first_batches("host"), first_batches("device"), strict=True):
        assert torch.equal(host["order"], device["order"])
        assert host["image"].dtype == torch.uint8 and device["image"].dtype == torch.float32
        difference = (host["image"] / 255 - device["image"]).abs() * 255
        assert difference.max() < 1.01 and difference.mean() < 0.25


@pytest.mark.parametrize("workers", [0, 3])
def test_any_number_of_workers_gives_the_same_bits(workers):
    for one, other in zip(
        first_batches("device", workers=1), first_batches("device", workers=workers), strict=True
    ):
        assert one.keys() == other.keys() == {"image", "order"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_whole_run(tmp_path):
    config, _ = load_config(
        "mae_digits", [*SHORT, "augment.on=device", "tracking.picture_every=2", f"run_dir={tmp_path}"]
    )
    run(config)
    lines = list(read_metrics(tmp_path))
    losses = {kind: [v["loss"] for v in lines if v["kind"] == kind] for kind in ("train", "validation")}
    assert len(losses["train"]) == 2 and losses["validation"]
    assert np.isfinite([*losses["train"], *losses["validation"]]).all()
    assert list((tmp_path / "pictures").glob("*.png"))
    found = replay(tmp_path, 2, [])
    assert found["values"] == found["logged"] and len(found["samples"]["train"]) == 8
    arrays = show_batch(tmp_path, 2)["ranks"][0]["micro_batches"][0]["arrays"]
    assert arrays["image"] == ["float32", 4, 1, 28, 28]


@pytest.mark.parametrize(
    ("recipe", "settings", "error"),
    [
        ("clm_sotu", ["augment.on=device"], "augment.on=device: objective 'clm' .* draws no views of images"),
        ("mae_digits", ["augment.source_size=64"], "augment.source_size=64: .* set augment.on=device"),
        ("mae_digits", ["augment.on=gpu"], "augment.on='gpu': must be 'host' or 'device'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(recipe, settings, error):
    with pytest.raises(UserError, match=error):
        config, _ = load_config(recipe, settings)
        build_objective(config, first_of(open_sources(config.data)))


def test_on_is_a_word_in_recipes(tmp_path):
    """YAML 1.1 takes it for true."""
    recipe = tmp_path / "own.yaml"
    whole = yaml.safe_load(format_config(*load_config("mae_digits", [])))
    recipe.write_text(
        yaml.safe_dump({**whole, "augment": None}).replace("augment: null", "augment: {on: device}")
    )
    config, origin = load_config(str(recipe), [])
    assert config.augment.on == "device"
    assert yaml.safe_load(format_config(config, origin))["augment"]["on"] == "device"
    assert load_config("mae_digits", ["augment={on: device}"])[0].augment.on == "device"
