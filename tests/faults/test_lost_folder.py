"""A run whose folder is lost goes on from the copies of its checkpoints, as if nothing had been."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch

from pretrain.checkpoint.folder import complete, find_fault
from pretrain.release.release import load_run_encoder
from tests.distributed.slow_steps import SECONDS, SLOW_STEPS
from tests.processes import QUIET, kill, losses, run, start
from tests.s3_server import s3_server
from tests.tiny_run import SMALL

STEPS = 20
SETTINGS = [
    "mae_digits", *SMALL, "train.global_batch_size=16", "checkpoint.every=4", "tracking.log_every=1",
    f"train.steps={STEPS}", SLOW_STEPS, *QUIET,
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as filesystem:
        yield filesystem


def told(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_run_goes_on_from_s3_bit_for_bit(s3, tmp_path, processes):
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    run("pretrain", [*SETTINGS, f"run_dir={whole}"], processes)
    again = [*SETTINGS, f"run_dir={lost}", f"checkpoint.targets=['s3://bucket/{processes}']"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECONDS, "0.2")  # so that it is still under way when it is killed
        process = start("pretrain", again, processes)
    deadline = time.monotonic() + 120
    while not s3.exists(f"bucket/{processes}/step_00000008/manifest.json"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        s3.invalidate_cache()
    kill(process)
    run_id = json.loads((lost / "run.json").read_text())["id"]
    shutil.rmtree(lost)
    run("pretrain", again, processes)

    (resumed,) = told(lost, "resume")
    assert 4 < resumed["step"] < STEPS
    assert resumed["broken_checkpoints"] == []
    expected = {step: row for step, row in losses(whole).items() if step > resumed["step"]}
    assert losses(lost) == expected
    assert json.loads((lost / "run.json").read_text())["id"] == run_id
    weights, found = (load_run_encoder(folder).encoder.state_dict() for folder in (whole, lost))
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    s3.invalidate_cache()
    assert s3.exists(f"bucket/{processes}/step_{STEPS:08d}/manifest.json")  # the end waits for its copy


@pytest.mark.parametrize("processes", [1, 2])
def test_a_target_that_cannot_be_written_stops_all_ranks_with_one_line(s3, tmp_path, processes):
    targets = "checkpoint.targets=['s3://nosuchbucket/x']"
    result = run(
        "pretrain", [*SETTINGS, "train.steps=8", f"run_dir={tmp_path}", targets], processes, expect=None
    )
    assert result.stderr.count("error: ") == 1
    assert "s3://nosuchbucket/x: step_000000" in result.stderr
    assert processes > 1 or "Traceback" not in result.stderr  # torchrun adds its own
    newest = complete(tmp_path / "checkpoints")[-1]
    assert find_fault(newest) is None


def test_a_target_that_cannot_be_written_is_told_of_where_that_is_asked_for(s3, tmp_path):
    targets = ["checkpoint.targets=['s3://nosuchbucket/x', 's3://bucket/y']", "checkpoint.on_failure=warn"]
    run("pretrain", [*SETTINGS, "train.steps=8", f"run_dir={tmp_path}", *targets])
    failed = told(tmp_path, "checkpoint_failed")
    assert failed[-1]["step"] == 8
    assert all("s3://nosuchbucket/x" in line["reason"] for line in failed)
    s3.invalidate_cache()
    assert s3.exists("bucket/y/step_00000008/manifest.json")
