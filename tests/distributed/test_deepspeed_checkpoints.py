"""DeepSpeed's launcher, its own checkpoints, their consolidation and their way to another number of ranks."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from tests.processes import QUIET, environment, losses, run

SETTINGS = [
    "mae_digits", "train.steps=6", "train.global_batch_size=16", "checkpoint.every=3", "tracking.log_every=1",
    *QUIET, "encoder.hidden_size=16",
    "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2",
]  # fmt: skip
ZERO2 = ["engine=deepspeed", "deepspeed.stage=2"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deepspeed_extension")]


def call(*command: str) -> str:
    env = {**environment(), "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The curve of one process on the `ddp` engine."""
    folder = tmp_path_factory.mktemp("one")
    run("pretrain", [*SETTINGS, f"run_dir={folder}"])
    return losses(folder)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of ZeRO-2 on two ranks, started by the `deepspeed` launcher."""
    folder = tmp_path_factory.mktemp("runs") / "launched"
    call("deepspeed", "--num_gpus", "2", "--module", "pretrain", *SETTINGS, *ZERO2, f"run_dir={folder}")
    return folder


def interrupted(run_folder, tmp_path):
    """A copy of the run as it was after step 3, and the folder of its optimizer's checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000006")
    return copy, copy / "checkpoints" / "step_00000003" / "deepspeed" / "main"


def assert_same_losses(found, expected):
    assert found.keys() == expected.keys() == set(range(1, 7))
    for step, row in expected.items():
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=1e-5), step


def test_the_deepspeed_launcher_starts_the_run_that_torchrun_would(run_folder, expected):
    assert_same_losses(losses(run_folder), expected)


def test_zero2_resumes_on_as_many_ranks(run_folder, expected, tmp_path):
    copy, _ = interrupted(run_folder, tmp_path)
    run("pretrain", [*SETTINGS, *ZERO2, f"run_dir={copy}"], processes=2)
    assert '"kind": "resume", "step": 3' in (copy / "metrics.jsonl").read_text()
    assert_same_losses(losses(copy), expected)


def test_zero2_resumes_on_one_rank_once_it_has_been_converted(run_folder, expected, tmp_path):
    copy, checkpoint = interrupted(run_folder, tmp_path)
    again = [*SETTINGS, *ZERO2, f"run_dir={copy}"]
    refused = run("pretrain", again, expect=2)
    assert "saved on another number of ranks" in refused.stderr
    assert "Traceback" not in refused.stderr
    folders = ["--input_folder", str(checkpoint / "state"), "--output_folder", str(checkpoint / "universal")]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    call(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, *workers)
    run("pretrain", again)
    assert '"kind": "resume", "step": 3' in (copy / "metrics.jsonl").read_text()
    assert_same_losses(losses(copy), expected)


def test_deepspeeds_own_tool_consolidates_our_checkpoint(run_folder, tmp_path):
    checkpoint = run_folder / "checkpoints" / "step_00000006"
    folder = checkpoint / "deepspeed" / "main"
    call(sys.executable, str(folder / "zero_to_fp32.py"), str(folder), str(tmp_path), "-t", "state")
    found = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    names = {name.removeprefix("roles."): name for name in found}
    state = {
        "roles": {
            role: {
                n.partition(".")[2]: torch.empty_like(found[names[n]])
                for n in names
                if n.startswith(f"{role}.")
            }
            for role in ("encoder", "decoder")
        }
    }
    dcp.load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    ours = {
        f"roles.{role}.{name}": value for role, part in state["roles"].items() for name, value in part.items()
    }
    assert ours.keys() == found.keys()
    assert len(ours) > 40
    for name, value in ours.items():
        assert torch.equal(value, found[name]), name
