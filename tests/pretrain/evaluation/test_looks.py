"""Looks at a run's features: the same samples every time, compared with the start, and a word when they collapse."""

from __future__ import annotations

import logging
import shutil
from contextlib import closing

import numpy as np
import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation import look
from pretrain.evaluation.look import Looks, choose_samples, default_samples
from pretrain.optim.build import build_optimizer
from pretrain.report.report import write_report
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective, run
from pretrain.tracking.metrics import read_metrics
from tests.processes import QUIET
from tests.tiny_run import SMALL

COMMON = [*SMALL, *QUIET, "train.global_batch_size=8", "tracking.log_every=1", "checkpoint.every=3"]
LOOKS = ["representation.every=1", "representation.samples=40"]


def looks_at(*overrides: str, recipe: str = "mae_digits"):
    config, _ = load_config(recipe, [*SMALL, "train.steps=24", *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    return Looks(config, objective, sources), engine


def lines_of(folder, kind):
    return {line["step"]: line for line in read_metrics(folder) if line["kind"] == kind}


def test_a_run_tells_of_its_features_and_learns_the_same_with_and_without(tmp_path, capsys):
    losses = {}
    for name, more in (("plain", []), ("looked_at", LOOKS)):
        settings = [*COMMON, "train.steps=4", *more, f"run_dir={tmp_path / name}"]
        run(load_config("mae_digits", settings)[0])
        losses[name] = [line["loss"] for line in lines_of(tmp_path / name, "train").values()]
    assert losses["plain"] == losses["looked_at"]
    assert not lines_of(tmp_path / "plain", "representation")
    whole = lines_of(tmp_path / "looked_at", "representation")
    assert list(whole) == [0, 1, 2, 3, 4]
    for line in whole.values():
        assert 1 <= line["rankme"] <= line["rankme_bound"] == 16
        assert line["rankme_start"] == whole[0]["rankme"] != whole[4]["rankme"]
        assert -1 <= line["cosine"] <= line["cosine_bound"] == 1
        assert line["dead"] == 0
        assert "alpha_req" not in line and look.CENTRED not in line
    assert f"(start {whole[0]['rankme']:.3g})" in capsys.readouterr().out
    page = write_report(tmp_path / "looked_at").read_text()
    assert "RankMe (at most 16)" in page
    assert f"of 16, {whole[0]['rankme']:.3g} at the start" in page

    shutil.rmtree(tmp_path / "looked_at" / "checkpoints" / "step_00000004")  # goes on from step 3
    (tmp_path / "looked_at" / "metrics.jsonl").unlink()
    run(load_config("mae_digits", [*COMMON, "train.steps=4", *LOOKS, f"run_dir={tmp_path / 'looked_at'}"])[0])
    again = lines_of(tmp_path / "looked_at", "representation")
    assert {k: v for k, v in again[4].items() if k != "time"} == {
        k: v for k, v in whole[4].items() if k != "time"
    }


def test_the_start_counts_only_for_the_same_samples():
    looks, _ = looks_at("representation.samples=20")
    state = {**looks.state_dict(), "start": {"spread": 0.5}, "collapsed": True}
    looks.load_state_dict(state)
    assert looks.start == {"spread": 0.5}
    assert looks.collapsed
    other, _ = looks_at("representation.samples=30")
    other.load_state_dict(state)
    assert other.start == {}
    unset, _ = looks_at()
    unset.load_state_dict(state)
    assert (len(unset.samples), unset.start) == (20, {"spread": 0.5}), "as many as the run began with"


def test_every_sample_is_seen_once_and_damaged_ones_are_left_out():
    looks, engine = looks_at("representation.samples=30")
    with engine.evaluating(looks.objective):
        whole, labels = looks.embed(engine, [looks.objective.view])
        assert whole.shape == (30, 1, 16)
        dataset, index = looks.samples[7]
        pooled = looks.objective.encode(
            looks.objective.collate([looks.objective.view(dataset[index])])
        ).pooled
        np.testing.assert_allclose(whole[7, 0], pooled[0], atol=1e-5)
        assert list(labels) == list(range(30))
        assert labels[7] == dataset[index]["label"]
        seen = looks.read

        def read(samples, views):
            return [found for found in seen(samples, views) if found[0] % 3]

        looks.read = read
        np.testing.assert_allclose(
            looks.embed(engine, [looks.objective.view])[0],
            np.delete(whole, range(0, 30, 3), axis=0),
            atol=1e-5,
        )


def test_samples_are_shared_by_weight():
    digits, test = (first_of(open_sources(load_config("mae_digits", [f"data.path={path}"])[0].data))
                    for path in ("sample:digits", "sample:digits_test"))  # fmt: skip
    chosen = choose_samples({"a": digits, "b": test}, {"a": 3.0, "b": 1.0}, 40)
    assert sum(len(dataset) == len(digits) for dataset, _ in chosen) == 30
    assert len(set(chosen)) == len(chosen) == 40


def test_looks_cost_a_small_share_of_the_run_unless_it_is_tiny():
    for recipe in ("mae_digits", "mae_images", "gan_digits", "bert_base"):
        settings = ["train.steps=5000", "train.epochs=null", "schedule.warmup_steps=null"]
        config, _ = load_config(recipe, settings)
        every = 417
        samples = default_samples(config, 5000, every)
        assert samples * (5000 // every + 1) <= 5000 * config.train.global_batch_size / 32
        assert 64 <= samples <= 2048
    assert default_samples(config, 2, 1) == 64


def test_a_constant_encoder_is_named_by_the_first_look(tmp_path, caplog):
    encoder = ("encoder={name: 'tests.pretrain.evaluation.collapsing:Constant', image_size: 28, patch_size: 7, "
               "num_channels: 1, image_mean: [0.5], image_std: [0.5]}")  # fmt: skip
    settings = [encoder, *SMALL, *QUIET, "train.global_batch_size=8", "train.steps=1", *LOOKS]
    with caplog.at_level(logging.WARNING):
        run(load_config("mae_digits", [*settings, f"run_dir={tmp_path}"])[0])
    assert "step 0: the encoder is constant" in caplog.text
    assert list(lines_of(tmp_path, "collapse")) == [0], "it is told once"
    assert lines_of(tmp_path, "representation")[0]["dead"] == 1
    assert "the encoder is constant" in write_report(tmp_path).read_text()


PLANTED = {
    "learning rate × 100": ["optimizer.lr=0.3"],
    "no centring": ["objective={name: 'tests.pretrain.evaluation.collapsing:Uncentred'}", "optimizer.lr=0.03"],
}  # fmt: skip


def first_tenth(*overrides: str) -> list[str]:
    """What is said of the features in the first tenth of a run of 240 steps."""
    settings = [*SMALL[1:3], *QUIET, "encoder.hidden_size=48", "representation.every=null", "train.steps=240",
                "train.global_batch_size=16"]  # fmt: skip
    config, _ = load_config("mae_digits", [*settings, *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    trainer = assemble_trainer(config, objective, sources, engine, 240)
    looks, found = Looks(config, objective, sources), []
    with closing(trainer.loader):
        steps = iter(trainer.loader)
        found.append(looks.look(engine, 0)[1])
        while trainer.step < looks.every:
            trainer.train_step(trainer.take_batch(steps))
        found.append(looks.look(engine, trainer.step)[1])
    assert trainer.step < 24
    return [reason for reason in found if reason]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_collapse_is_told_before_a_tenth_of_the_run_is_over(planted):
    assert "collaps" in " ".join(first_tenth(*PLANTED[planted]))


def test_a_healthy_run_gives_no_alarm():
    assert first_tenth() == []


def test_an_objective_without_whole_samples_trains_on_unless_looks_were_asked_for(tmp_path, caplog):
    objective = "objective={name: 'tests.distributed.interface_objectives:Contrastive'}"
    settings = [objective, *SMALL[:3], *(word for word in QUIET if not word.startswith("representation.")),
                "train.global_batch_size=8", "train.steps=1"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        run(load_config("mae_digits", [*settings, f"run_dir={tmp_path / 'default'}"])[0])
    assert (
        "not looked at (representation.every): the objective's product, 'encoder', is none of" in caplog.text
    )
    with pytest.raises(UserError, match="is none of its roles"):
        run(load_config("mae_digits", [*settings, *LOOKS, f"run_dir={tmp_path / 'asked'}"])[0])
