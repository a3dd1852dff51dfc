"""A checkpoint counts as saved where that is proven: by every rank, for every file, whatever goes wrong."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from data_tools.errors import UserError
from pretrain.checkpoint import saving
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.folder import MANIFEST, complete, find_fault, seal
from pretrain.checkpoint.saving import Checkpoints
from pretrain.engine import base
from pretrain.engine.saving import hash_file, own_share
from tests.pretrain.test_checkpoint import tiny_engine

ERRORS = [MemoryError(), ValueError("negative"), TypeError("not a tensor"), KeyError("x"), OSError("gone"),
          torch.OutOfMemoryError("out of memory"), AssertionError()]  # fmt: skip


@pytest.fixture
def engine():
    return tiny_engine(seed=0)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("asynchronous", [True, False])
def test_whatever_the_writing_thread_meets_the_checkpoint_has_failed(
    error, asynchronous, engine, tmp_path, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(base, "save_state", fail)
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig(asynchronous=asynchronous))

    def save() -> None:
        checkpoints.save(1, {"stream": {}})
        checkpoints.finish()

    with pytest.raises(UserError, match=r"step_00000001: the checkpoint could not be written \(.+\)"):
        save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["start_saving", "gather_while_saving"])
def test_wherever_it_fails_a_run_that_shall_go_on_is_told_and_saves_the_next_one(
    part, engine, tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig(on_failure="warn"))

    def fail(*_):
        raise TypeError("unpicklable")

    with monkeypatch.context() as patch:
        patch.setattr(engine, part, fail)
        failures = checkpoints.save(1, {"stream": {}}) + checkpoints.finish()
    assert [failure.step for failure in failures] == [1]
    assert "TypeError: unpicklable" in failures[0].reason
    assert checkpoints.save(2, {"stream": {}}) + checkpoints.finish() == []
    assert [find_fault(path) for path in complete(tmp_path)] == [None]


def test_a_writing_thread_that_ends_in_silence_has_saved_nothing(engine, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig())
    monkeypatch.setattr(Checkpoints, "write", lambda *_: None)
    checkpoints.save(1, {"stream": {}})
    with pytest.raises(UserError, match="ended without a result"):
        checkpoints.finish()


def test_a_file_that_the_metadata_name_and_nobody_has_written_seals_nothing(engine, tmp_path):
    files = engine.start_saving(tmp_path)()
    data = next(tmp_path.glob("*.distcp"))
    seal(tmp_path, [files])
    assert find_fault(tmp_path) is None
    (tmp_path / MANIFEST).unlink()
    data.unlink()
    for written in ([files], [{}]):
        with pytest.raises(UserError, match=rf"{data.name}.*do not share this folder; set run_dir"):
            seal(tmp_path, written)
    assert not (tmp_path / MANIFEST).exists()


def test_what_is_hashed_while_it_is_written_is_what_lies_there(engine, tmp_path):
    files = engine.start_saving(tmp_path)()
    assert {path.name for path in tmp_path.iterdir()} == set(files) == {".metadata", "__0_0.distcp"}
    for name, (size, checksum) in files.items():
        assert (size, checksum) == ((tmp_path / name).stat().st_size, hash_file(tmp_path / name))
    assert engine.bytes_written == sum(size for size, _ in files.values())


def test_a_file_that_a_rank_has_written_is_not_read_again(engine, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("pretrain.checkpoint.folder.hash_file", lambda path: read.append(path.name) or "0")
    Checkpoints(tmp_path, engine, CheckpointConfig(asynchronous=False)).save(1, {"stream": {}})
    assert read == ["progress.json"]


def test_plans_are_made_once_and_anew_after_a_failure(engine, tmp_path, monkeypatch):
    made = []
    plan = base.save_state.__globals__["Planner"]._create_global_plan
    monkeypatch.setattr(
        base.save_state.__globals__["Planner"], "_create_global_plan", lambda *a: made.append(1) or plan(*a)
    )
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig(asynchronous=False, on_failure="warn"))
    for step in (1, 2, 3):
        checkpoints.save(step, {"stream": {}})
    assert len(made) == 1
    with monkeypatch.context() as patch:
        patch.setattr(saving, "seal", lambda *_: 1 / 0)
        assert len(checkpoints.save(4, {"stream": {}})) == 1
    checkpoints.save(5, {"stream": {}})
    assert len(made) == 2
    assert [find_fault(path) for path in complete(tmp_path)] == [None, None]


def test_every_tensor_is_one_ranks_to_write_and_each_has_about_as_much():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 1000, (40,), generator=generator).tolist()
    state = {"roles": {f"w{i}": torch.zeros(n) for i, n in enumerate(sizes)}, "lr": 0.1, "empty": {}}
    shares = [own_share(state, rank, 3) for rank in range(3)]
    names = [set(share.get("roles", {})) for share in shares]
    assert set.union(*names) == set(state["roles"])
    assert sum(map(len, names)) == len(sizes)
    loads = [sum(t.numel() for t in share["roles"].values()) for share in shares]
    assert max(loads) - min(loads) <= 1000
    assert ["lr" in share and "empty" in share for share in shares] == [True, False, False]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_slow_disk_is_told_to_the_watchdog_and_one_that_hangs_is_not(hangs, engine, tmp_path, monkeypatch):
    go_on, write = threading.Event(), base.save_state

    def slowly(*arguments):
        while not go_on.wait(0.05):
            engine.bytes_written += not hangs
        return write(*arguments)

    monkeypatch.setattr(base, "save_state", slowly)
    monkeypatch.setattr(saving, "WAIT", 0.1)
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig())
    checkpoints.save(1, {"stream": {}})
    beats: list[str] = []
    before: list[int] = []
    threading.Timer(1.0, lambda: (before.append(len(beats)), go_on.set())).start()
    assert checkpoints.finish(beats.append) == []
    assert all(beat == "waiting for the checkpoint of step 1" for beat in beats)
    assert before[0] <= 2 if hangs else before[0] >= 4
    assert json.loads((complete(tmp_path)[0] / "progress.json").read_text())["step"] == 1
