"""Work of many processes, or of one that is stopped, ends as if one had done it: packing, indexing, opening."""

import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_data import write_images

from data_tools.__main__ import main
from data_tools.commands.index import index
from data_tools.commands.pack import engine
from data_tools.commands.pack.text import plan_jsonl
from data_tools.dataset import index as indexing
from data_tools.dataset import open as opening
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError, run_cli
from data_tools.formats.manifest import read_manifest
from data_tools.storage import locks
from data_tools.storage.cache_folder import build_once

SHARD_BYTES = 200


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"text {i}" * 9}) + "\n" for i in range(9))
    )
    return plan_jsonl([tmp_path / "in.jsonl"], SHARD_BYTES)


def pack(source, out, part=(0, 1)):
    return engine.pack(source, out, SHARD_BYTES, processes=1, part=part)


def test_a_folder_that_is_packed_by_half_says_what_is_missing(source, tmp_path):
    out = tmp_path / "out"
    pack(source, out, (0, 3))
    for use in (open_dataset, index_folder):
        with pytest.raises(UserError, match=r"packed in part only: --shard 1/3, 2/3 is missing"):
            use(out)
    pack(source, out, (2, 3))
    with pytest.raises(UserError, match=r"--shard 1/3 is missing"):
        open_dataset(out)
    pack(source, out, (1, 3))
    assert len(open_dataset(out)) == 9


def index_folder(place):
    return index(str(place))


def test_a_folder_whose_packing_was_stopped_is_not_opened(source, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(engine, "write_manifest", stop)
        pack(source, tmp_path / "out")
    with pytest.raises(UserError, match="the manifest is not written; run the same `pack` command once more"):
        open_dataset(tmp_path / "out")
    pack(source, tmp_path / "out")
    assert open_dataset(tmp_path / "out").fingerprint == pack(source, tmp_path / "whole").manifest.fingerprint


@pytest.mark.parametrize("locking", [True, False])
def test_tasks_that_end_at_once_all_succeed(source, tmp_path, monkeypatch, locking):
    """All of them see all receipts, and give the files their names together."""
    if not locking:
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    tasks, run_jobs = 4, engine.run_jobs
    together = threading.Barrier(tasks)

    def end_together(*arguments):
        run_jobs(*arguments)
        together.wait(10)
        found = run_jobs(*arguments)
        together.wait(10)
        return found

    monkeypatch.setattr(engine, "run_jobs", end_together)
    with ThreadPoolExecutor(tasks) as pool:
        ended = list(pool.map(lambda k: pack(source, tmp_path / "out", (k, tasks)), range(tasks)))
    monkeypatch.undo()
    whole = pack(source, tmp_path / "whole").manifest
    assert {result.manifest.fingerprint for result in ended} == {whole.fingerprint}
    assert read_manifest(tmp_path / "out" / "manifest.json").fingerprint == whole.fingerprint
    assert not (tmp_path / "out" / ".pack").exists()
    assert len(list(open_dataset(tmp_path / "out"))) == 9


def test_a_task_that_ends_after_another_has_written_the_manifest_succeeds(source, tmp_path, monkeypatch):
    run_jobs, out = engine.run_jobs, tmp_path / "out"

    def end_late(*arguments):
        run_jobs(*arguments)
        monkeypatch.undo()
        pack(source, out, (0, 2))
        return run_jobs(*arguments)

    monkeypatch.setattr(engine, "run_jobs", end_late)
    assert pack(source, out, (1, 2)).manifest.fingerprint == open_dataset(out).fingerprint
    assert not (out / ".pack").exists()


def no_locks(*_):
    raise OSError(errno.ENOLCK, "no locks here")


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_indexing_that_was_stopped_before_its_last_step_goes_on(tmp_path, monkeypatch, moved):
    folder = write_images(tmp_path, 30, 10)
    whole = open_dataset(folder).fingerprint
    publish, count = indexing.Staging.publish, iter(range(100))

    def stop_after(*arguments):
        if next(count) == moved:
            raise KeyboardInterrupt
        publish(*arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(indexing.Staging, "publish", stop_after)
        if moved == 3:  # all of them: the manifest is what is left
            stopped.setattr(indexing, "write_manifest", stop_after)
        for path in [*folder.glob("*.sidecar"), folder / "manifest.json"]:
            path.unlink()
        assert run_cli(lambda: main(["index", str(folder)])) == 130
    assert run_cli(lambda: main(["index", str(folder)])) == 0
    assert open_dataset(folder).fingerprint == whole
    assert not (folder / ".index").exists()


@pytest.mark.parametrize("locking", [True, False])
def test_of_many_that_open_tars_at_once_one_indexes_and_the_others_wait(tmp_path, monkeypatch, locking):
    folder = write_images(tmp_path, 30, 10)
    (folder / "manifest.json").unlink()
    index_shards, asked = opening.index_shards, []

    def counted(*arguments):
        asked.append(1)
        time.sleep(0.2)
        return index_shards(*arguments)

    monkeypatch.setattr(opening, "index_shards", counted)
    if not locking:
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: open_dataset(folder).fingerprint, range(6)))
    assert len(set(found)) == 1
    assert len(asked) == 1 if locking else len(asked) >= 1


def test_what_fails_to_be_built_is_built_by_the_next_who_waits(tmp_path):
    begun, tries = threading.Event(), []

    def build(folder):
        tries.append(1)
        (folder / "file").write_text("x")
        if len(tries) == 1:
            begun.set()
            time.sleep(0.1)
            raise UserError("no")

    def attempt(first):
        if not first:
            begun.wait(5)
        return build_once(tmp_path / "built", build)

    with ThreadPoolExecutor(2) as pool:
        failed, built = pool.submit(attempt, True), pool.submit(attempt, False)
        with pytest.raises(UserError, match="no"):
            failed.result()
        assert (built.result() / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["built"]
