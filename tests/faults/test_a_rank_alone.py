"""A rank that fails alone, or is left alone, says so and ends, though no group can be closed any more."""

from __future__ import annotations

import time

import pytest

from tests.processes import QUIET, losses, run
from tests.tiny_run import SMALL

SETTINGS = [
    "mae_digits", *(s for s in SMALL if not s.startswith("objective")), "train.global_batch_size=16", "train.steps=8",
    "objective={name: 'tests.faults.left_alone:LeftAlone', decoder_hidden_size: 8, decoder_num_hidden_layers: 1, "
    "decoder_num_attention_heads: 2}", "tracking.log_every=1",
    *QUIET, "train.hang_timeout=0", "distributed.start_timeout=120",
    "distributed.timeout=8",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("leaves_by", "line"),
    [
        ("an error", "ArithmeticError: planted"),
        ("a mistake", "error (rank 1): planted"),
        ("silence", "rank 0: lost another rank, whose error is above"),
    ],
)
def test_it_says_why_and_ends(tmp_path, monkeypatch, leaves_by, line):
    monkeypatch.setenv("LEAVES_BY", leaves_by)
    started = time.monotonic()
    ended = run("pretrain", [*SETTINGS, f"run_dir={tmp_path}"], 2, expect=None)
    assert ended.stderr.count(line) == 1, ended.stderr
    assert max(losses(tmp_path)) >= 3, "a first step may take longer than those after it"
    assert time.monotonic() - started < 300, "closing is not waited for"
