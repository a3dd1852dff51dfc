"""What is told of all ranks is a sum over them: damaged samples, and counts that float32 has no room for."""

from __future__ import annotations

import json

import pytest

from tests.pretrain.test_exact_counts import MANY
from tests.processes import run


@pytest.mark.slow
def test_damaged_samples_and_large_counts_are_those_of_both_ranks(tmp_path):
    run("tests.distributed.damaged_shares", [str(tmp_path)], 2)
    ranks = [json.loads((tmp_path / f"rank_{i}.json").read_text()) for i in range(2)]
    assert [rank["own"] for rank in ranks] == [1, 1], "each has met one"
    for rank in ranks:
        assert rank["rows"][0]["damaged_samples"] == 2
        assert sorted(rank["events"]) == sorted(["damaged", key] for key in rank["keys"])
        assert rank["counts"] == {"loss": MANY + 1}
