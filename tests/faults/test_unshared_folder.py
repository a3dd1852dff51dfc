"""Two ranks that do not share the run folder, and two that do: what each of them writes of a checkpoint."""

from __future__ import annotations

import json
import sys

import pytest
import torch.distributed.checkpoint as dcp

from pretrain.checkpoint.folder import complete, find_fault
from tests.faults.full_disk import FULL, on_a_small_disk
from tests.faults.test_disk_full import SETTINGS
from tests.processes import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("found", ["at_start", "late"])
def test_ranks_that_do_not_share_the_run_folder_leave_no_checkpoint_that_lacks_shards(found, tmp_path):
    result = run("tests.faults.apart", [str(tmp_path), found, *SETTINGS, "run_dir=run"], 2, expect=None)
    assert result.stderr.count("error: ") == 1, result.stderr
    expected = {
        "at_start": (
            "rank 1 on ",
            "host_1/run",
            "does not see what rank 0 on ",
            "set run_dir to an absolute path",
        ),
        "late": ("__1_0.distcp, which rank 1 has written", "set run_dir to one that all hosts see"),
    }
    assert all(part in result.stderr for part in expected[found]), result.stderr
    assert [*tmp_path.rglob("step_*")] == []
    assert [*tmp_path.rglob(".seen-by-all-*")] == []


def test_ranks_of_ddp_each_copy_and_write_half_of_a_checkpoint(tmp_path):
    settings = [*SETTINGS, "checkpoint.keep=9", f"run_dir={tmp_path}"]
    run("tests.faults.counted_copies", [str(tmp_path), *settings], 2)
    staged = [[int(n) for n in (tmp_path / f"staged_{rank}").read_text().split()] for rank in (0, 1)]
    newest = complete(tmp_path / "checkpoints")[-1]
    entries = dcp.FileSystemReader(newest).read_metadata().state_dict_metadata.values()
    whole = sum(e.size.numel() * e.properties.dtype.itemsize for e in entries if hasattr(e, "properties"))
    assert len(staged[0]) == 3
    for first, second in zip(*staged, strict=True):
        assert first + second == whole
        assert max(first, second) < 0.6 * whole
    assert [find_fault(path) for path in complete(tmp_path / "checkpoints")] == [None] * 3
    assert {"__0_0.distcp", "__1_0.distcp"} <= set(
        json.loads((newest / "manifest.json").read_text())["files"]
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_named_by_the_checkpoint_that_it_does_not_take(processes, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    module = torchrun if processes > 1 else ["-m"]
    command = [sys.executable, *module, "pretrain", *SETTINGS, f"run_dir={tmp_path}"]
    result = on_a_small_disk(tmp_path, "200k", command)
    assert result.returncode != 0
    found = FULL.search(result.stderr)
    assert found, result.stderr
    assert found["mount"] == str(tmp_path)
    assert found["needed"].endswith("kB")
    assert "step_00000002: the checkpoint could not be written" in result.stderr
    assert "enforce fail" not in result.stderr
