"""Deterministic mode: two runs on the same machine and set-up have the same bits, and every recipe can run in it."""

from __future__ import annotations

import hashlib

import pytest

from pretrain.checkpoint.folder import complete
from tests.distributed.curves import CASES, COMMON
from tests.processes import losses, run

SETTINGS = ["train.steps=5", "train.deterministic=true", "tracking.wandb.mode=disabled", "tracking.picture_every=0",
            "probe.every=0"]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", ["mae", "mlm", "clm", "gan"])
def test_two_runs_have_the_same_bits(case, tmp_path):
    recipe, *own = CASES[case]
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        run("pretrain", [recipe, *COMMON, *own, *SETTINGS, f"run_dir={folder}"], processes=2)
        (checkpoint,) = complete(folder / "checkpoints")
        files = sorted(checkpoint.glob("*.distcp"))
        found.append((losses(folder), [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]))
    assert found[0] == found[1]
    assert found[0][1]
