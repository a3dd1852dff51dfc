"""The average of the weights is the same on every engine, and a resumed run goes on with it."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from pretrain.release.release import load_run_encoder
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=16", "train.steps=8", "checkpoint.every=4", "train.ema_decay=0.9",
    "tracking.log_every=1", *QUIET, "tracking.picture_every=3",
    "optimizer.lr=0.01", "schedule.warmup_ratio=0",
]  # fmt: skip
pytestmark = pytest.mark.slow


def assert_same_average(folder, expected):
    """Keys' biases aside: attention does not depend on them, so Adam moves them by rounding errors."""
    found, wanted = (load_run_encoder(f).encoder.state_dict() for f in (folder, expected))
    for name, value in wanted.items():
        if "key.bias" not in name and "k_proj.bias" not in name:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run("pretrain", [*SETTINGS, f"run_dir={folder}"])
    return folder


@pytest.mark.parametrize("engine", [["engine=fsdp"], ["engine=deepspeed", "deepspeed.stage=2"]])
def test_two_ranks_average_as_one_does(expected, tmp_path, engine):
    run("pretrain", [*SETTINGS, *engine, f"run_dir={tmp_path}"], 2)
    assert_same_average(tmp_path, expected)


def test_schedule_free_releases_its_average_and_looking_at_it_changes_nothing(tmp_path):
    free = ["optimizer.name=schedule_free", "schedule.name=constant", "train.ema_decay=null"]
    folders = [tmp_path / name for name in ("one", "two", "blind")]
    for folder, own, ranks in zip(folders, (["engine=ddp"], ["engine=fsdp"], ["tracking.picture_every=0"]), (1, 2, 1),
                                  strict=True):  # fmt: skip
        run("pretrain", [*SETTINGS, *free, *own, f"run_dir={folder}"], ranks)
    assert losses(folders[0]) == losses(folders[2])
    assert_same_average(folders[1], folders[0])
    released = load_run_encoder(folders[0]).encoder.state_dict()
    trained = {"roles": {"encoder": {name: torch.empty_like(value) for name, value in released.items()}}}
    reader = FileSystemReader(folders[0] / "checkpoints" / "step_00000008")
    dcp.load(trained, storage_reader=reader, no_dist=True)
    assert any(not torch.equal(value, released[name]) for name, value in trained["roles"]["encoder"].items())


def test_a_run_resumed_on_another_engine_goes_on_with_its_average(expected, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(expected, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000008")
    run("pretrain", [*SETTINGS, "engine=fsdp", f"run_dir={resumed}"], 2)
    assert losses(resumed)[8]["loss"] == pytest.approx(losses(expected)[8]["loss"], rel=1e-5)
    assert_same_average(resumed, expected)
