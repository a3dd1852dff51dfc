"""One process and several see the same batches and learn the same: every loss is equal, rounding aside."""

from __future__ import annotations

import pytest

from tests.processes import losses, run

SHORT = [
    "train.steps=50",
    "tracking.log_every=1",
    "tracking.wandb.mode=disabled",
    "probe.every=0",
    "tracking.picture_every=50",
]


def curve(recipe, run_dir, processes, *overrides):
    run("pretrain", [recipe, f"run_dir={run_dir}", *SHORT, *overrides], processes)
    return losses(run_dir)


def assert_same_curve(one, other, tolerance=1e-5):
    assert one.keys() == other.keys() == set(range(1, 51))
    for step, values in one.items():
        for name, value in values.items():
            if name.endswith("loss"):
                assert other[step][name] == pytest.approx(value, rel=tolerance), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "loss"), [("mae_digits", "loss"), ("gan_digits", "discriminator/loss")])
def test_two_processes_learn_what_one_learns(tmp_path, recipe, loss):
    batch = "train.global_batch_size=64" if recipe == "mae_digits" else "train.global_batch_size=8"
    one = curve(recipe, tmp_path / "one", 1, batch)
    two = curve(recipe, tmp_path / "two", 2, batch)
    assert_same_curve(one, two)
    assert one[50][loss] < 0.98 * one[1][loss]
    size = one[1]["position"]
    assert [line["position"] for line in one.values()] == [size * step for step in range(1, 51)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", [["engine=ddp"], ["engine=fsdp"], ["engine=deepspeed", "deepspeed.stage=2"]]
)
def test_a_growing_batch_is_the_same_on_every_engine(tmp_path, engine):
    growing = [
        "train.global_batch_size=32",
        "train.batch_size_warmup=[[8, 20], [16, 20]]",
        "train.micro_batch_size=8",
    ]
    one = curve("mae_digits", tmp_path / "one", 1, *growing)
    two = curve("mae_digits", tmp_path / "two", 2, *growing, *engine)
    assert_same_curve(one, two)
    assert [one[step]["position"] for step in (20, 40, 50)] == [160, 480, 800]


@pytest.mark.slow
def test_accumulated_micro_batches_learn_what_whole_batches_learn(tmp_path):
    one = curve("mae_digits", tmp_path / "one", 1, "train.global_batch_size=64")
    accumulated = curve(
        "mae_digits", tmp_path / "two", 2, "train.global_batch_size=64", "train.micro_batch_size=8"
    )
    assert_same_curve(one, accumulated)
