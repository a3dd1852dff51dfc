"""Every logged line of a real run says how fast it went, and saying so changes nothing of what is learned."""

from __future__ import annotations

import json

import pytest

from pretrain.tracking.metrics import read_metrics
from tests.cases import CASES
from tests.distributed.curves import COMMON
from tests.processes import QUIET, losses, run

MEASURED = [*QUIET, "tracking.count_flops=true", "train.steps=6"]
pytestmark = pytest.mark.slow


def lines(folder):
    return [line for line in read_metrics(folder) if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("case", "engine"),
    [("mae", ["engine=ddp"]), ("mlm", ["engine=fsdp"]), ("gan", ["engine=ddp"]),
     ("clm", ["engine=deepspeed", "deepspeed.stage=2"])],
)  # fmt: skip
def test_two_ranks_say_it_all(tmp_path, case, engine):
    recipe, *own = CASES[case]
    run(
        "pretrain",
        [
            recipe,
            *COMMON,
            *own,
            *MEASURED,
            *engine,
            "tracking.peak_tflops=0.5",
            "tracking.communication_every=100",
            f"run_dir={tmp_path}",
        ],
        2,
    )
    found = lines(tmp_path)
    assert len(found) == 6
    for line in found:
        assert line["samples_per_second"] > 0
        assert line["mfu"] == pytest.approx(line["tflops_per_second"] / 0.5)
        assert 0 < line["mfu"] < 1
        assert 0.05 < line["peak_memory_gib"] < 20
        assert 0 <= line["data_wait"] < 1
        assert 0 <= line["straggler_wait"] < 1
        assert line["slowest_rank"] in (0, 1)
        assert 0 < line["communication"] < 1
        assert ("tokens_per_second" in line) == (case in ("mlm", "clm"))
        if "tokens_per_second" in line:
            assert line["tokens_per_second"] / line["samples_per_second"] >= 64


def test_measuring_changes_nothing_and_the_profile_can_be_opened(tmp_path):
    recipe, *own = CASES["mae"]
    settings = [recipe, *COMMON, *own, *MEASURED]
    run("pretrain", [*settings, f"run_dir={tmp_path / 'plain'}"], 2)
    measured = ["tracking.communication_every=2", "tracking.profile_at=3", "tracking.profile_steps=2"]
    run("pretrain", [*settings, f"run_dir={tmp_path / 'measured'}", *measured], 2)
    assert losses(tmp_path / "plain") == losses(tmp_path / "measured")
    assert "communication" not in lines(tmp_path / "plain")[-1]
    for rank in (0, 1):
        trace = json.loads((tmp_path / "measured" / "profile" / f"rank_{rank}.json").read_text())
        assert any("gloo:" in str(event.get("name")) for event in trace["traceEvents"])
        assert "aten::addmm" in (tmp_path / "measured" / "profile" / f"rank_{rank}.txt").read_text()
    assert not (tmp_path / "plain" / "profile").exists()
