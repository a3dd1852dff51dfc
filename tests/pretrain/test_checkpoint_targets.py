"""Copies of checkpoints on other storage: whole or not at all, in the background, and trusted only when verified."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from dataclasses import replace

import fsspec
import pytest
import torch.distributed.checkpoint as dcp
from bad_store import BadFileSystem
from test_checkpoint import tiny_engine
from tiny_run import SMALL, make_run
from torch.distributed.checkpoint import FileSystemWriter

from data_tools.errors import UserError
from data_tools.storage.objects import Retry
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.folder import complete, find_fault, seal
from pretrain.checkpoint.saving import Checkpoints
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.targets import Copies, find_newest, identity_of, open_run, refuse_checkpoints
from pretrain.config.load import load_config
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.engine.saving import without_advice
from pretrain.release.release import load_run_encoder
from pretrain.run.folder import RunFolder
from pretrain.run.run import run
from pretrain.weights.start import fetch_starting_weights, load_starting_weights
from tests.processes import QUIET
from tests.s3_server import s3_server

QUICK = Retry(patience=2.0, first_wait=0.01, longest_wait=0.02)


@pytest.fixture(autouse=True)
def bad():
    BadFileSystem.reset()
    return BadFileSystem


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path, monkeypatch):
    """Where copies go."""
    if request.param == "s3":
        with s3_server(monkeypatch):
            yield "s3://bucket/runs/x"
    else:
        yield f"{request.param}://{tmp_path / 'target'}"
        if request.param == "memory":
            fsspec.filesystem("memory").store.clear()


def make_checkpoint(folder, step, text="state", identity=None):
    """A valid checkpoint without a model in it."""
    path = folder / f"step_{step:08d}"
    (path / "part").mkdir(parents=True)
    (path / "part" / "0.distcp").write_text(f"{text} {step}")
    (path / "progress.json").write_text(json.dumps({"step": step}))
    (path / "run.json").write_text(json.dumps(identity or {}))
    seal(path)
    return path


def copies_to(url, **settings):
    copies = Copies(CheckpointConfig(targets=(url,), **settings))
    for target in copies.targets:
        target.store.retry = QUICK
    return copies


def copy_all(copies, checkpoints):
    """One after the other, and what failed."""
    for checkpoint in checkpoints:
        copies.add(checkpoint)
        while copies.busy(60):
            pass
    return [failure.reason for failure in copies.take_failures()]


def anything(place, identity):
    """Accepts every run's checkpoints."""


def test_a_copy_comes_back_valid_from_every_kind_of_store(url, tmp_path):
    copies = copies_to(url, keep=2, permanent_every=3, every=1)
    own = [make_checkpoint(tmp_path / "own", step) for step in range(1, 7)]
    assert copy_all(copies, own) == []
    store = copies.targets[0].store
    assert store.complete() == store.names() == [f"step_{step:08d}" for step in (3, 4, 5, 6)]
    found = find_newest(tmp_path / "elsewhere", [store], anything, strict=True)
    assert found.path == tmp_path / "elsewhere" / own[-1].name
    assert find_fault(found.path) is None
    assert (found.path / "part" / "0.distcp").read_text() == "state 6"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [own[-1].name]


def test_the_manifest_is_written_last_and_deleted_first(bad, tmp_path):
    copies = copies_to("bad://x", keep=1)
    copy_all(copies, [make_checkpoint(tmp_path, step) for step in (1, 2)])
    first = [name for name in bad.written if "step_00000001" in name]
    assert first == [
        f"/x/step_00000001/{name}" for name in ("part/0.distcp", "progress.json", "run.json", "manifest.json")
    ]
    assert bad.deleted == ["/x/step_00000001/manifest.json", "/x/step_00000001"]
    assert not bad.store.keys() & set(first)


def test_an_interrupted_copy_is_no_checkpoint_and_is_cleared_away_later(bad, tmp_path):
    def fail(path):
        if "step_00000002/run.json" in path:
            raise PermissionError(path)  # an error that does not pass

    bad.before_put = staticmethod(fail)
    copies = copies_to("bad://x", on_failure="warn")
    own = [make_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    reasons = copy_all(copies, own[:2])
    assert len(reasons) == 1
    assert "step_00000002 could not be copied there" in reasons[0]
    store = copies.targets[0].store
    assert store.names() == ["step_00000001", "step_00000002"]
    assert store.complete() == ["step_00000001"]
    copy_all(copies, own[2:])
    assert store.names() == ["step_00000001", "step_00000003"]


def test_passing_errors_are_waited_for(bad, tmp_path):
    tried = []

    def fail_twice(path):
        tried.append(path)
        if tried.count(path) < 3:
            raise ConnectionError("reset")

    bad.before_put = staticmethod(fail_twice)
    copies = copies_to("bad://x")
    assert copy_all(copies, [make_checkpoint(tmp_path, 1)]) == []
    assert copies.targets[0].store.complete() == ["step_00000001"]


def test_a_file_that_arrives_short_is_sent_again(bad, tmp_path, monkeypatch):
    size, short = BadFileSystem.size, [1]
    monkeypatch.setattr(BadFileSystem, "size", lambda self, path: short.pop() if short else size(self, path))
    copies = copies_to("bad://x")
    assert copy_all(copies, [make_checkpoint(tmp_path, 1)]) == []
    assert bad.written.count("/x/step_00000001/part/0.distcp") == 2


def test_a_damaged_checkpoint_is_not_copied_over_a_good_one(tmp_path):
    copies = copies_to(f"file://{tmp_path / 'target'}", on_failure="warn")
    own = make_checkpoint(tmp_path / "own", 1)
    copy_all(copies, [own])
    (own / "part" / "0.distcp").write_text("stale 1")
    assert copy_all(copies, [own]) == []  # there already
    assert (tmp_path / "target" / own.name / "part" / "0.distcp").read_text() == "state 1"
    other = make_checkpoint(tmp_path / "own", 2)
    (other / "part" / "0.distcp").write_text("stale 2")
    (reason,) = copy_all(copies, [other])
    assert "another checksum" in reason


@pytest.fixture
def slow(bad):
    """Two events: a copy has begun; it may go on."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(_):
        begun.set()
        assert go_on.wait(60)

    bad.before_put = staticmethod(wait)
    yield begun, go_on
    go_on.set()


def test_a_slow_target_delays_no_checkpoint_and_only_the_newest_waits(slow, tmp_path):
    begun, go_on = slow
    config = CheckpointConfig(targets=("bad://x",), keep=1, every=1, permanent_every=3, asynchronous=False)
    copies = Copies(config)
    checkpoints = Checkpoints(tmp_path, tiny_engine(seed=0), config, copies)
    checkpoints.save(1, {"stream": {}})
    assert begun.wait(60)
    for step in (2, 3, 4, 5):
        assert checkpoints.save(step, {"stream": {}}) == []
    # The first is being copied and stays for it; of those that wait, the newest and the permanent one.
    assert [path.name[-1] for path in complete(tmp_path)] == ["1", "3", "5"]
    assert copies.targets[0].store.complete() == []
    go_on.set()
    alive = []
    assert checkpoints.finish(alive.append) == []
    assert [name[-1] for name in copies.targets[0].store.complete()] == ["3", "5"]
    assert [path.name[-1] for path in complete(tmp_path)] == ["3", "5"]
    assert not BadFileSystem.store.keys() & {
        "/x/step_00000002/manifest.json",
        "/x/step_00000004/manifest.json",
    }


@pytest.fixture
def dead(bad):
    def fail(path):
        raise ConnectionError("https://me:secret@host/x refused")

    bad.before_put = staticmethod(fail)


def save_until_told(checkpoints, steps):
    told = []
    for step in steps:
        told += checkpoints.save(step, {"stream": {}})
        while checkpoints.copies.busy(60):
            pass
    return told + checkpoints.finish()


def test_a_dead_target_is_told_of_where_that_is_asked_for(dead, tmp_path):
    config = CheckpointConfig(targets=("bad://x",), on_failure="warn", target_patience=0.1)
    checkpoints = Checkpoints(tmp_path, tiny_engine(seed=0), config, Copies(config))
    told = save_until_told(checkpoints, (1, 2, 3))
    assert [failure.step for failure in told] == [1, 2, 3]
    assert all(failure.reason.startswith("bad://x: step_0") for failure in told)
    assert "no answer for" in told[0].reason
    assert not any("secret" in failure.reason for failure in told)
    assert [path.name[-1] for path in complete(tmp_path)] == ["2", "3"]


def test_a_dead_target_stops_the_run_at_the_next_checkpoint(dead, tmp_path):
    config = CheckpointConfig(targets=("bad://x",), target_patience=0.1)
    checkpoints = Checkpoints(tmp_path, tiny_engine(seed=0), config, Copies(config))
    with pytest.raises(UserError, match=r"bad://x: step_00000001 could not be copied.*see to the target"):
        save_until_told(checkpoints, (1, 2))
    assert checkpoints.finish() == []  # it was told once, and has no more patience for a dead target
    assert [path.name[-1] for path in complete(tmp_path)] == ["1", "2"]  # nothing of the run is lost


@pytest.fixture
def target(tmp_path):
    """A store with copies of steps 1, 2 and 3."""
    copies = copies_to(f"file://{tmp_path / 'target'}", keep=3)
    copy_all(copies, [make_checkpoint(tmp_path / "first", step) for step in (1, 2, 3)])
    return copies.targets[0].store


@pytest.mark.parametrize("name", ["part/0.distcp", "manifest.json"])
def test_a_damaged_copy_is_named_and_the_one_before_it_used(target, tmp_path, name):
    file = tmp_path / "target" / "step_00000003" / name
    file.write_bytes(file.read_bytes()[:-1])
    found = find_newest(tmp_path / "own", [target], anything, strict=True)
    assert found.path == tmp_path / "own" / "step_00000002"
    assert len(found.broken) == 1
    assert f"file://{tmp_path}/target/step_00000003/{name}" in found.broken[0]


def test_of_own_and_copied_checkpoints_the_newest_valid_one_wins(target, tmp_path):
    own = tmp_path / "own"
    make_checkpoint(own, 3, "mine")
    found = find_newest(own, [target], anything, strict=True)
    assert (found.path / "part" / "0.distcp").read_text() == "mine 3"
    (own / "step_00000003" / "progress.json").unlink()
    found = find_newest(own, [target], anything, strict=True)
    assert found.broken == ["step_00000003/progress.json is missing"]
    assert (found.path / "part" / "0.distcp").read_text() == "state 3"


def test_names_that_lead_out_of_the_folder_are_refused(target, tmp_path):
    manifest = tmp_path / "target" / "step_00000003" / "manifest.json"
    files = json.loads(manifest.read_text())
    files["files"]["../../escaped"] = files["files"].pop("progress.json")
    manifest.write_text(json.dumps(files))
    found = find_newest(tmp_path / "own" / "checkpoints", [target], anything, strict=True)
    assert "not in the folder" in found.broken[0]
    assert found.path.name == "step_00000002"
    assert not (tmp_path / "own" / "escaped").exists()


def test_a_store_out_of_reach_is_an_error_only_where_a_run_would_start_anew(bad, tmp_path, monkeypatch):
    def refuse(self, path, **options):
        raise ConnectionError("refused")

    monkeypatch.setattr(BadFileSystem, "ls", refuse)
    store = Store("bad://x", Retry(patience=0.05, first_wait=0.01))
    with pytest.raises(UserError, match=r"bad://x: no answer.*may be there.*on_failure=warn"):
        find_newest(tmp_path, [store], anything, strict=True)
    assert find_newest(tmp_path, [store], anything, strict=False).broken == []
    make_checkpoint(tmp_path, 1)
    found = find_newest(tmp_path, [store], anything, strict=True)
    assert found.path is not None
    assert "bad://x: no answer" in found.broken[0]


def config_of(tmp_path, run_dir, *overrides):
    targets = f"checkpoint.targets=['file://{tmp_path / 'target'}']"
    return load_config("mae_digits", [*SMALL, f"run_dir={tmp_path / run_dir}", targets, *overrides])[0]


def open_folder(config):
    folder = RunFolder(config.folder)
    try:
        return open_run(DDPEngine(TrainConfig(), World()), folder, config, Copies(config.checkpoint))
    finally:
        folder.close()


@pytest.fixture
def copied_run(tmp_path):
    """A run's folder is lost, and its target holds step 4; gives the run's id."""
    config = config_of(tmp_path, "lost")
    checkpoint = make_checkpoint(tmp_path / "gone", 4, identity=identity_of("cafe", config))
    copy_all(Copies(config.checkpoint), [checkpoint])
    return "cafe"


def test_a_lost_folder_gets_its_checkpoint_and_its_id_back(copied_run, tmp_path):
    config = config_of(tmp_path, "new", "checkpoint.keep=7", "engine=fsdp")
    run_id, found = open_folder(config)
    assert run_id == copied_run
    assert found.path == tmp_path / "new" / "checkpoints" / "step_00000004"
    assert open_folder(config)[0] == copied_run


def test_the_copies_of_a_different_run_are_refused_as_its_folder_would_be(copied_run, tmp_path):
    with pytest.raises(
        UserError, match=r"file://.*/target: holds a run with optimizer\.lr=.*checkpoint\.targets"
    ):
        open_folder(config_of(tmp_path, "other", "optimizer.lr=0.5"))
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_two_runs_never_share_a_target(copied_run, tmp_path):
    make_checkpoint(tmp_path / "second" / "checkpoints", 9)
    with pytest.raises(UserError, match="holds checkpoints of the run cafe, not"):
        open_folder(config_of(tmp_path, "second"))


def test_a_run_that_must_not_resume_looks_at_its_targets_too(copied_run, tmp_path):
    with pytest.raises(UserError, match=r"target: holds checkpoints; .*--resume never"):
        refuse_checkpoints(config_of(tmp_path, "new"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/x", "nosuch://bucket/x: fsspec cannot open it"),
        ("https://host/x", "http cannot be written to"),
        ("s3://me:secret@bucket/x", r"s3://bucket/x comes with a password"),
        ("s3://bucket/x?key=secret", r"s3://bucket/x comes with a password"),
    ],
)
def test_what_cannot_be_a_target_is_refused_before_anything_starts(url, message):
    with pytest.raises(UserError, match=message) as refusal:
        Copies(load_config("mae_digits", [f"checkpoint.targets=['{url}']"])[0].checkpoint)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("part", ["", "/step_00000005"])
def test_a_new_run_starts_from_another_runs_target(tmp_path, part):
    make_run(tmp_path / "first")
    url = f"file://{tmp_path / 'target'}"
    copy_all(copies_to(url), complete(tmp_path / "first" / "checkpoints"))
    config, objective = make_run(tmp_path / "second", "seed=9", f"init_from={url}{part}")
    fetch_starting_weights(config)
    (report,) = load_starting_weights(config, objective)
    assert report.loaded > 0
    assert str(tmp_path / "second" / "init_from") in report.folder
    (tmp_path / "target" / "step_00000005" / "progress.json").unlink()
    with pytest.raises(UserError, match=r"init_from=file://.*no valid checkpoint .*progress\.json"):
        fetch_starting_weights(config)


def test_a_run_from_a_url_needs_it_only_once(tmp_path):
    make_run(tmp_path / "first")
    copy_all(copies_to(f"file://{tmp_path / 'target'}"), complete(tmp_path / "first" / "checkpoints"))
    quick = ["train.steps=2", "train.global_batch_size=8", *QUIET,
             "tracking.log_every=1"]  # fmt: skip
    init_from = f"init_from=file://{tmp_path / 'target'}"
    config, _ = load_config("mae_digits", [*SMALL, *quick, init_from, f"run_dir={tmp_path / 'second'}"])
    run(config)
    events = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events].count("loaded") == 1
    shutil.rmtree(tmp_path / "target")
    assert run(config).finished


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def put_into_metadata(checkpoint, bomb):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(bomb))


def put_beside_tensors(checkpoint, bomb):
    for file in checkpoint.iterdir():
        file.unlink()
    with without_advice():
        dcp.save({"lr": bomb}, storage_writer=FileSystemWriter(checkpoint), no_dist=True)


@pytest.mark.parametrize("plant", [put_into_metadata, put_beside_tensors])
def test_code_in_a_checkpoint_from_elsewhere_is_refused_and_not_run(tmp_path, plant):
    make_run(tmp_path / "first")
    (checkpoint,) = complete(tmp_path / "first" / "checkpoints")
    url = f"file://{checkpoint.parent}"
    store = Store(url)
    assert find_newest(tmp_path / "a", [store], anything, strict=True).broken == []
    plant(checkpoint, Bomb(tmp_path / "ran"))
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    seal(checkpoint)  # whoever can write it can seal it too
    (tmp_path / "ran").unlink(missing_ok=True)
    found = find_newest(tmp_path / "b", [store], anything, strict=True)
    assert found.path is None
    assert "step_00000005 holds what is not a tensor or a value, and could run code" in found.broken[0]
    assert not (tmp_path / "ran").exists()


def put_in_a_tensors_place(checkpoint, bomb):
    for file in checkpoint.iterdir():
        file.unlink()
    state = {"roles": {"encoder": {"model.layernorm.weight": bomb}}}
    with without_advice():
        dcp.save(state, storage_writer=FileSystemWriter(checkpoint), no_dist=True)
    (checkpoint / "progress.json").write_text('{"step": 5}')


@pytest.mark.parametrize("plant", [put_into_metadata, put_in_a_tensors_place])
def test_code_in_somebodys_run_is_not_run_by_a_release_or_a_start_from_it(tmp_path, plant):
    config, objective = make_run(tmp_path / "first")
    (checkpoint,) = complete(tmp_path / "first" / "checkpoints")
    plant(checkpoint, Bomb(tmp_path / "ran"))
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    seal(checkpoint)
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(UserError, match="could run code"):
        load_run_encoder(tmp_path / "first")
    with pytest.raises(UserError, match="could run code"):
        load_starting_weights(replace(config, init_from=str(tmp_path / "first")), objective)
    assert not (tmp_path / "ran").exists()
