"""A run is changed on purpose: made longer, rescued, branched; what follows is what it would have been anyway."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import SMALL

from data_tools.errors import UserError
from data_tools.order.batch_sizes import BatchSizes
from pretrain.__main__ import main
from pretrain.checkpoint.weights import read_weights, saved_shapes
from pretrain.config.load import load_config
from pretrain.report.report import write_report
from pretrain.run.batch import show_batch
from pretrain.run.changes import parse_changes
from pretrain.run.replay import replay
from tests.processes import QUIET, losses, run

SETTINGS = (
    "train.global_batch_size=8", *QUIET,
    "tracking.log_every=1", "schedule={name: constant, warmup_ratio: null, warmup_steps: 2}", "checkpoint.keep=5",
)  # fmt: skip


def pretrain(folder, *arguments):
    return main(["mae_digits", *SMALL, *SETTINGS, f"run_dir={folder}", *arguments])


def weights(folder, step):
    """By name, every weight of a checkpoint."""
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    tensors = {name: torch.zeros(shape) for name, shape in saved_shapes(checkpoint).items()}
    roles = {}
    for name, tensor in tensors.items():
        role, _, key = name.partition(".")
        roles.setdefault(role, {})[key] = tensor
    read_weights(checkpoint, roles)
    return tensors


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_that_was_made_longer_is_one_that_was_long_from_the_start(tmp_path, capfd):
    long, extended = tmp_path / "long", tmp_path / "extended"
    assert pretrain(long, "train.steps=6") == 0
    assert pretrain(extended, "train.steps=4") == 0
    assert pretrain(extended, "train.steps=6") == 2
    error = capfd.readouterr().err
    assert (
        "holds a run with train.steps=4, not 6; to change it on purpose, add --allow-changes train.steps"
        in error
    )
    assert pretrain(extended, "train.steps=6", "--allow-changes", "train.steps") == 0
    out = capfd.readouterr().out
    assert f"going on from step 4 of 6 ({extended})\n  changed on purpose: train.steps was 4, is 6\n" in out
    assert losses(extended) == losses(long)
    assert_same(weights(extended, 6), weights(long, 6))
    events = [json.loads(line) for line in (extended / "metrics.jsonl").read_text().splitlines()]
    (changed,) = [line for line in events if line["kind"] == "changed"]
    assert (changed["step"], changed["changes"]) == (4, {"train.steps": [4, 6]})
    assert "<code>train.steps</code> from 4 to 6" in write_report(extended).read_text()
    assert pretrain(extended, "train.steps=6") == 0  # it is the run's own setting now


@pytest.mark.slow
def test_a_run_is_rescued_with_another_learning_rate_and_weight_decay(tmp_path):
    assert pretrain(tmp_path, "train.steps=3") == 0
    own = ["train.steps=4", "optimizer.lr=1e-3", "optimizer.weight_decay=500"]
    assert pretrain(tmp_path, *own, "--allow-changes", "train.steps,optimizer.*") == 0
    before, after = weights(tmp_path, 3), weights(tmp_path, 4)
    names = [name for name in before if name.endswith(("weight", "bias")) and "layer" in name]
    matrix = next(name for name in names if before[name].ndim == 2)
    bias = next(name for name in names if name.endswith("bias"))
    # AdamW: w ← (1 - lr · decay) w - lr · update, and an update is about 1 at most: half of a matrix is left.
    torch.testing.assert_close(after[matrix], before[matrix] / 2, atol=3e-3, rtol=0)
    torch.testing.assert_close(after[bias], before[bias], atol=3e-3, rtol=0)
    lines = losses(tmp_path)
    assert (lines[3]["lr"], lines[4]["lr"]) == (3e-3, 1e-3)
    for step in (3, 4):  # each under the settings that it was taken with
        found = replay(tmp_path, step, [])
        assert found["values"]["loss"] == lines[step]["loss"]


@pytest.mark.slow
def test_several_decays_from_one_trunk_are_the_runs_that_were_planned_so(tmp_path):
    wsd = "schedule={name: wsd, warmup_ratio: null, warmup_steps: 2}"
    trunk = tmp_path / "trunk"
    assert pretrain(trunk, wsd, "train.steps=12", "schedule.decay_ratio=0.25", "checkpoint.every=6") == 0
    for steps, ratio in ((8, 0.25), (9, 1 / 3)):  # both fall after step 6
        own = [wsd, f"train.steps={steps}", f"schedule.decay_ratio={ratio}"]
        branch, planned = tmp_path / f"branch_{steps}", tmp_path / f"planned_{steps}"
        assert pretrain(branch, *own, f"init_from={trunk}@6", "init_with=progress") == 0
        assert pretrain(planned, *own) == 0
        assert losses(branch) == {step: line for step, line in losses(planned).items() if step > 6}
        assert_same(weights(branch, steps), weights(planned, steps))


@pytest.mark.slow
def test_optimizer_states_come_along_where_they_fit(tmp_path, capfd):
    trunk = tmp_path / "trunk"
    assert pretrain(trunk, "train.steps=4", "optimizer.lr=1e-2") == 0
    start, first = (
        [f"init_from={trunk}@4", "train.steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-2"],
        {},
    )
    for what in ("weights", "optimizer"):
        assert pretrain(tmp_path / what, *start, f"init_with={what}") == 0
        first[what] = losses(tmp_path / what)[1]
    assert first["optimizer"]["loss"] == first["weights"]["loss"]  # the same weights see the same first batch
    moved = [
        weights(tmp_path / what, 1)["encoder.model.embeddings.patch_embeddings.projection.bias"]
        for what in first
    ]
    assert not torch.equal(*moved)
    capfd.readouterr()
    for override in ("optimizer.name=muon", "train.ema_decay=0.9", "encoder.hidden_size=32"):
        assert pretrain(tmp_path / override, *start, "init_with=optimizer", override) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "optimizer states need the same" in line
    assert pretrain(tmp_path / "none", f"init_from={trunk}@3", "train.steps=3") == 2
    assert "there are steps 4" in capfd.readouterr().err


def test_epochs_end_at_the_same_sample_when_the_batch_grows(tmp_path):
    epochs = ["train.steps=null", "train.epochs=0.004"]  # 48 of 12,000 samples
    assert pretrain(tmp_path, *epochs) == 0
    more = ["train.steps=null", "train.epochs=0.008", "train.global_batch_size=16"]
    assert pretrain(tmp_path, *more, "--allow-changes", "train.epochs,train.global_batch_size") == 0
    positions = {step: line["position"] for step, line in losses(tmp_path).items()}
    assert positions == {1: 8, 2: 16, 3: 24, 4: 32, 5: 40, 6: 48, 7: 64, 8: 80, 9: 96}
    assert pretrain(tmp_path, *more) == 0  # started again, it knows that it is done
    starts = [show_batch(tmp_path, step)["position"] for step in (1, 6, 7, 9)]
    assert starts == [0, 40, 48, 80]


def test_steps_of_epochs_are_counted_from_anywhere():
    sizes = BatchSizes(128, ((32, 3), (64, 2)))  # stages end at samples 96 and 224
    assert [sizes.steps_for(600 - position, position) for position in (0, 32, 96, 160, 224, 352)] == [
        8,
        7,
        5,
        4,
        3,
        2,
    ]
    assert sizes.steps_for(50, 80) == 2  # one of 32 goes over the end of its stage, one of 64


def test_a_run_cannot_end_before_where_it_stands(tmp_path, capfd):
    assert pretrain(tmp_path, "train.steps=4") == 0
    assert pretrain(tmp_path, "train.steps=3", "--allow-changes", "train.steps") == 2
    assert "has taken 4 steps already, and is to take 3" in capfd.readouterr().err


@pytest.mark.parametrize(
    "key", ["encoder.hidden_size", "optimizer.name", "optimizer_overrides.main.name", "train", "seed"]
)
def test_what_would_make_it_another_run_cannot_be_allowed(key):
    with pytest.raises(UserError, match=f"--allow-changes {key}: cannot change within a run"):
        parse_changes(f"train.steps,{key}")


def test_a_refusal_names_the_option_only_where_it_helps(tmp_path, capfd):
    assert pretrain(tmp_path, "train.steps=2") == 0
    assert pretrain(tmp_path, "train.steps=3", "seed=1") == 2
    assert "--allow-changes" not in capfd.readouterr().err
    assert pretrain(tmp_path, "train.steps=3", "optimizer.lr=1e-3") == 2
    assert "--allow-changes optimizer.lr,train.steps" in capfd.readouterr().err


def test_optimizer_states_of_deepspeed_are_refused_with_the_reason(tmp_path, capfd):
    assert pretrain(tmp_path / "run", "train.steps=2") == 0
    (tmp_path / "run" / "checkpoints" / "step_00000002" / "deepspeed").mkdir()
    start = [f"init_from={tmp_path / 'run'}", "init_with=optimizer", "train.steps=2"]
    assert pretrain(tmp_path / "other", *start) == 2
    assert "DeepSpeed keeps optimizer states in a form of its own" in capfd.readouterr().err


def test_what_a_run_begins_with_is_asked_for_together():
    with pytest.raises(UserError, match="init_with=progress: is of a run that init_from names"):
        load_config("mae_digits", ["init_with=progress"])


@pytest.mark.slow
def test_a_branch_on_two_sharded_ranks_goes_on_as_its_trunk(tmp_path):
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    assert pretrain(trunk, "train.steps=6", "checkpoint.every=3") == 0
    start = [
        f"run_dir={branch}",
        "train.steps=6",
        f"init_from={trunk}@3",
        "init_with=progress",
        "engine=fsdp",
    ]
    done = run("pretrain", ["mae_digits", *SMALL, *SETTINGS, *start], processes=2)
    assert "beginning at step 3 of 6" in done.stdout
    went, goes = losses(trunk), losses(branch)
    assert sorted(goes) == [4, 5, 6]
    for step, line in goes.items():
        assert line["position"] == went[step]["position"]
        assert line["loss"] == pytest.approx(
            went[step]["loss"], rel=0.02
        )  # other masks: each rank draws its own
