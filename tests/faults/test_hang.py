"""A rank that hangs costs the time limit: all stacks are written, all ranks end; started again, the run goes on."""

from __future__ import annotations

import pytest

from pretrain.checkpoint.folder import complete
from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *(s for s in SMALL if not s.startswith("objective")), "train.global_batch_size=16",
    "objective={name: 'tests.faults.sleeper:Sleeper', decoder_hidden_size: 8, decoder_num_hidden_layers: 1, "
    "decoder_num_attention_heads: 2}", "checkpoint.every=2", "tracking.log_every=1", "train.steps=8",
    *QUIET, "train.hang_timeout=8",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["politely", "with the interpreter's lock"])
def test_a_hanging_rank_is_ended_with_its_stack_written(tmp_path, how, monkeypatch):
    settings = [*SETTINGS, f"run_dir={tmp_path}"]
    monkeypatch.setenv("OVERSLEEP", how)
    hung = run("pretrain", settings, 2, expect=None)
    assert "ended with 75" not in hung.stderr, "nobody has asked it to stop"
    monkeypatch.delenv("OVERSLEEP")
    stacks = {rank: (tmp_path / "stacks" / f"rank_{rank:05d}.txt").read_text() for rank in (0, 1)}
    assert "oversleep" in stacks[1], "the culprit says where it is"
    assert "oversleep" not in stacks[0]
    assert "all_reduce" in stacks[0], "the other one waits for it"
    assert "rank 0: step 5 has not ended for 8 s (train.hang_timeout); it is at" in hung.stderr
    if how == "politely":
        assert "sleeper.py" in hung.stderr
    assert complete(tmp_path / "checkpoints"), "what was saved before is there"

    run("pretrain", settings, 2)
    assert max(losses(tmp_path)) == 8


def test_a_healthy_run_leaves_no_stacks(tmp_path):
    run("pretrain", [*SETTINGS, f"run_dir={tmp_path}"], 2)
    assert not list((tmp_path / "stacks").iterdir())
