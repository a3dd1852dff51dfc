"""Run folders of before: they open, resume, release, report and replay, and their manifests hold.

The two in `tests/fixtures` were written by the code of commit f9cc6df in 8 steps; the checkpoints after step 8 were
taken out, and the losses of all 8 steps are in their `metrics.jsonl`.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import transformers

from pretrain.__main__ import main
from pretrain.checkpoint.folder import complete, find_fault
from pretrain.config.load import build_config
from pretrain.run.folder import load_run_config
from pretrain.run.replay import replay
from tests.processes import losses

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("mae_digits", "clm_sotu")
SAVED = {"mae_digits": [3, 6], "clm_sotu": [5]}


@pytest.fixture(params=NAMES)
def old_run(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # their run_dir is relative
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    return Path("runs") / request.param


def test_the_manifests_of_an_old_run_hold(old_run):
    saved = complete(old_run / "checkpoints")
    assert [int(path.name.removeprefix("step_")) for path in saved] == SAVED[old_run.name]
    assert [find_fault(path) for path in saved] == [None] * len(saved)


@pytest.mark.slow
def test_an_old_run_goes_on_as_it_would_have_gone(old_run, capsys):
    before = losses(old_run)
    (old_run / "metrics.jsonl").rename(old_run / "before.jsonl")
    build_config(load_run_config(old_run))
    assert main([str(old_run / "config.yaml"), f"run_dir={old_run}"]) == 0
    after = losses(old_run)
    assert sorted(after) == list(range(SAVED[old_run.name][-1] + 1, 9))
    for step, line in after.items():
        assert line["loss"] == before[step]["loss"]
        assert line["grad_norm"] == before[step]["grad_norm"]
        assert line["position"] == before[step]["position"]
    assert (old_run / "report.html").is_file()


@pytest.mark.slow
def test_an_old_run_is_released_reported_and_replayed(old_run):
    before = losses(old_run)
    step = SAVED[old_run.name][0] + 1
    found = replay(old_run, step, [])
    assert found["values"]["loss"] == before[step]["loss"]
    assert main(["release", str(old_run)]) == 0
    transformers.AutoModel.from_pretrained(old_run / "release", local_files_only=True)
    assert (old_run / "release" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert main(["report", str(old_run)]) == 0
