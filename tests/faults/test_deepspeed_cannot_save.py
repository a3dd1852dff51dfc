"""DeepSpeed's ranks wait for each other while they save: one that cannot write must not leave the others there."""

from __future__ import annotations

import pytest

from pretrain.checkpoint.folder import newest_valid
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *(s for s in SMALL if not s.startswith("objective")), "train.global_batch_size=8", "train.steps=6",
    "objective={name: 'tests.faults.cannot_save:CannotSave', decoder_hidden_size: 8, decoder_num_hidden_layers: 1, "
    "decoder_num_attention_heads: 2}", "checkpoint.every=2", "tracking.log_every=1",
    *QUIET, "engine=deepspeed", "train.hang_timeout=60",
]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deepspeed_extension")]


def test_a_rank_that_finds_no_room_ends_the_run_and_the_checkpoint_before_is_intact(tmp_path):
    ended = run("pretrain", [*SETTINGS, f"run_dir={tmp_path}"], 2, expect=None)
    assert "step_00000004: the checkpoint could not be written (rank 1: " in ended.stderr, ended.stderr
    assert "planted" in ended.stderr
    assert max(losses(tmp_path)) == 4
    assert newest_valid(tmp_path / "checkpoints")[0] == tmp_path / "checkpoints" / "step_00000002"
