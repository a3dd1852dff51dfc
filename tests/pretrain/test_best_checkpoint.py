"""`checkpoint.keep_best`: the best checkpoint stays, here and where it is copied to, and can be released."""

from __future__ import annotations

import json
import shutil

import pytest

from data_tools.errors import UserError
from pretrain.checkpoint.best import HOOK, Best, best_checkpoint
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.folder import complete
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.load import load_config
from pretrain.release.release import load_run_encoder, release_run
from pretrain.run.run import run
from pretrain.tracking.metrics import read_metrics
from tests.pretrain.test_checkpoint import tiny_engine
from tests.pretrain.test_checkpoint_targets import copies_to, make_checkpoint
from tests.processes import QUIET
from tests.tiny_run import SMALL

SETTINGS = [*SMALL, *QUIET, "train.steps=7", "train.global_batch_size=8", "checkpoint.every=3", "checkpoint.keep=1",
            "representation.every=1", "representation.samples=20", "tracking.log_every=7"]  # fmt: skip


def names(folder):
    return [int(path.name.removeprefix("step_")) for path in complete(folder)]


def test_the_largest_or_the_smallest_value_is_the_best_and_the_first_of_equals():
    for metric, values, step in (
        ("linear", [0.5, 0.7, 0.9, 0.9, 0.8], 2), ("loss", [0.1, 3.0, float("nan"), 2.0, 2.0], 3),
        ("generator/loss", [9.0, 1.0, 2.0, 0.5, 3.0], 3), ("accuracy", [0.9, 0.1, 0.2, 0.3, 0.2], 3),
        ("part_loss", [0.0, 2.0, 1.0, 3.0, 4.0], 2),
    ):  # fmt: skip
        best = Best(f"probe.{metric}")
        for at, value in enumerate(values):
            best.note("validation", at, {"other": 100.0})
            best.note("probe", at, {metric: value, "x": 1.0})
        assert best.step == step, metric


def save_all(checkpoints, values):
    for step, value in enumerate(values, start=1):
        checkpoints.best.note("probe", step, {"linear": value})
        if checkpoints.due(step, len(values)):
            hooks = {HOOK: dict(checkpoints.best.state_dict())}
            checkpoints.save(step, {"stream": {}, "hooks": hooks})


def test_it_stays_while_others_go_and_is_made_between_the_usual_ones(tmp_path):
    config = CheckpointConfig(asynchronous=False, every=4, keep=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", tiny_engine(0), config, best=Best("probe.linear"))
    save_all(checkpoints, [0.1, 0.3, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1])
    assert names(tmp_path / "checkpoints") == [2, 9]
    assert best_checkpoint(tmp_path).name == "step_00000002"

    again = Checkpoints(tmp_path / "checkpoints", tiny_engine(1), config, best=Best("probe.linear"))
    progress, _ = again.resume()
    again.best.load_state_dict(progress["hooks"][HOOK])
    assert (again.best.step, again.best.value) == (2, 0.3)
    for step, value in ((10, 0.2), (11, 0.4), (12, 0.1)):
        again.best.note("probe", step, {"linear": value})
        again.save(step, {"stream": {}, "hooks": {HOOK: again.best.state_dict()}})
        assert names(tmp_path / "checkpoints") == {10: [2, 10], 11: [11], 12: [11, 12]}[step]

    shutil.rmtree(tmp_path / "checkpoints" / "step_00000011")
    progress_without, _ = again.resume()
    assert progress_without["hooks"] == {}, "what is lost cannot be beaten"

    other = Best("probe.knn")
    other.load_state_dict(progress["hooks"][HOOK])
    assert other.step is None, "another metric begins anew"


def test_one_that_is_not_written_yet_does_not_cost_the_one_before(tmp_path):
    checkpoints = Checkpoints(
        tmp_path, tiny_engine(0), CheckpointConfig(asynchronous=False, keep=1), best=Best("probe.x")
    )
    for step, value in ((1, 0.5), (2, 0.1)):
        checkpoints.best.note("probe", step, {"x": value})
        checkpoints.save(step, {"stream": {}, "hooks": {HOOK: checkpoints.best.state_dict()}})
    checkpoints.best.note("probe", 3, {"x": 0.9})  # measured, and killed before it is saved
    checkpoints.forget_old()
    assert names(tmp_path) == [1, 2]


def test_a_target_keeps_it_too(tmp_path):
    copies = copies_to((tmp_path / "target").as_uri(), keep=1)
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 3)):
        copies.add(make_checkpoint(tmp_path / "own", step), f"step_{best:08d}")
        while copies.busy(60):
            pass
        there = copies.targets[0].store.complete()
        expected = {1: [1], 2: [1, 2], 3: [3], 4: [3, 4], 5: [3, 5]}[step]
        assert [int(name[5:]) for name in there] == expected


def test_a_run_keeps_it_and_releases_it(tmp_path):
    settings = [*SETTINGS, "checkpoint.keep_best=representation.cosine", f"run_dir={tmp_path}"]
    run(load_config("mae_digits", settings)[0])
    cosine = {
        v["step"]: v["cosine"] for v in read_metrics(tmp_path) if v["kind"] == "representation" and v["step"]
    }
    lowest = min(cosine, key=cosine.get)
    assert names(tmp_path / "checkpoints") == sorted({lowest, 7})
    assert best_checkpoint(tmp_path).name == f"step_{lowest:08d}"
    events = [line for line in read_metrics(tmp_path) if line["kind"] == "best"]
    assert (events[-1]["step"], events[-1]["value"]) == (lowest, cosine[lowest])

    folder = release_run(tmp_path, best=True)
    assert f"for {lowest} steps" in (folder / "README.md").read_text()
    newest, best = load_run_encoder(tmp_path), load_run_encoder(tmp_path, best=True)
    assert (newest.step, best.step) == (7, lowest)
    shutil.rmtree(tmp_path / "checkpoints" / f"step_{lowest:08d}")
    with pytest.raises(UserError, match="its best checkpoint is not valid"):
        best_checkpoint(tmp_path)


def test_a_run_without_one_says_so(tmp_path):
    run(load_config("mae_digits", [*SETTINGS, "train.steps=1", f"run_dir={tmp_path}"])[0])
    assert (
        HOOK
        not in json.loads((complete(tmp_path / "checkpoints")[-1] / "progress.json").read_text())["hooks"]
    )
    with pytest.raises(UserError, match=r"keeps no best checkpoint .* set checkpoint.keep_best"):
        release_run(tmp_path, best=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["keep_best=probe.lnear", "probe"],
            r"probe.lnear: is not measured; did you mean 'linear'\? known: knn, linear",
        ),
        (
            ["keep_best=probe.linear"],
            r"is not measured in this run; set probe.every, probe.train and probe.test",
        ),
        (["keep_best=probes.linear", "probe"], r"<kind>.<metric>.* did you mean 'probe.linear'\?"),
        (["keep_best=validation.loss"], r"give data.validation held-out samples"),
        (["keep_best=representation.rank"], r"did you mean 'rankme'\? known: rankme, cosine, dead, spread"),
        (["keep_best=representation.alpha_req"], r"neither its largest nor its smallest value is the best"),
        (["keep_best=validation.acuracy", "validation"], r"validation.acuracy: is not measured; known: loss"),
    ],
)
def test_a_metric_that_is_not_measured_ends_the_run_before_its_first_step(settings, message, tmp_path):
    kinds = {"probe": ["probe.every=5", "probe.train_samples=20", "probe.test_samples=20"],
             "validation": ["data.validation=sample:digits_test", "validation.samples=8"]}  # fmt: skip
    asked = [f"checkpoint.{settings[0]}", *(kinds[settings[1]] if settings[1:] else [])]
    with pytest.raises(UserError, match=message):
        run(load_config("mae_digits", [*SETTINGS, *asked, f"run_dir={tmp_path}"])[0])
    assert not (tmp_path / "checkpoints").exists()
