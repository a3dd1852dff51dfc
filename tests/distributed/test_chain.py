"""One run from engine to engine and from world size to world size, step for step as one process takes it alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from pretrain.checkpoint.folder import complete, step_of
from pretrain.config.load import build_config
from pretrain.data import first_of, open_sources
from pretrain.run.folder import load_run_config
from pretrain.run.run import build_objective
from pretrain.weights.start import load_roles
from tests.distributed.chain import EVERY, STEPS
from tests.processes import environment, losses, run

CASES = ("mae", "gan")
CHAIN = [("engine=ddp", 2), ("engine=fsdp", 4), ("engine=fsdp", 2), ("engine=ddp", 1)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of uninterrupted runs, and of those that changed engine and ranks every few steps."""
    whole, chained = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("chained")
    run("tests.distributed.chain", [str(whole), ",".join(CASES)])
    for link, (engine, processes) in enumerate(CHAIN):
        for case in CASES:  # each goes on from where the one before it is taken to have ended
            for checkpoint in complete(chained / case / "checkpoints"):
                if step_of(checkpoint) > link * EVERY:
                    shutil.rmtree(checkpoint)
        run("tests.distributed.chain", [str(chained), ",".join(CASES), engine], processes)
    return whole, chained


@pytest.mark.parametrize("case", CASES)
def test_every_link_of_the_chain_goes_on_as_one_process_would(runs, case):
    whole, chained = (losses(folder / case) for folder in runs)
    assert whole.keys() == chained.keys() == set(range(1, STEPS + 1))
    for step, values in whole.items():
        assert chained[step]["position"] == values["position"] == 16 * step
        for name in (name for name in values if name.endswith("loss")):
            assert chained[step][name] == pytest.approx(values[name], rel=1e-5), (step, name)
    lines = [json.loads(line) for line in (runs[1] / case / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "resume"] == [EVERY, 2 * EVERY, 3 * EVERY]


def test_torchs_own_tool_converts_our_checkpoint(runs, tmp_path):
    folder = runs[1] / "mae"
    checkpoint = folder / "checkpoints" / f"step_{2 * EVERY:08d}"  # four ranks of FSDP wrote it
    assert len(list(checkpoint.glob("*.distcp"))) == 4
    tool = [
        "-m",
        "torch.distributed.checkpoint.format_utils",
        "dcp_to_torch",
        checkpoint,
        tmp_path / "out.pt",
    ]
    subprocess.run([sys.executable, *map(str, tool)], check=True, env=environment(), capture_output=True)
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    config = build_config(load_run_config(folder))
    objective = build_objective(config, first_of(open_sources(config.data)))
    load_roles(checkpoint, objective)
    weights = objective.encoder.state_dict()
    assert state["roles"]["encoder"].keys() == weights.keys()
    assert all(torch.equal(value, state["roles"]["encoder"][name]) for name, value in weights.items())
    assert any(key.endswith("exp_avg_sq") for key in state["optimizers"]["main"])
