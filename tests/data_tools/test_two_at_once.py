"""The same command, or one like it, by two processes at once in one folder: each does its work, one after the other."""

import threading

import pytest
from small_data import write_images

from data_tools.commands import verify as verifying
from data_tools.commands.index import index
from data_tools.commands.pack.engine import pack
from data_tools.commands.pack.text import plan_jsonl
from data_tools.commands.verify import verify
from data_tools.dataset.open import open_dataset, open_marked
from data_tools.errors import UserError
from data_tools.jobs import run_jobs
from data_tools.storage.locks import locked


def run_at_once(*works):
    """Every piece of work in a thread of its own; the errors."""
    errors = []

    def do(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=do, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_indexing_with_and_without_crc_at_once_leaves_one_index(tmp_path):
    folder = write_images(tmp_path / "data", samples=20, per_shard=5)
    for _ in range(6):
        assert not run_at_once(
            *(lambda crc=crc: index(str(folder), with_crc=crc) for crc in (True, True, False))
        )
        assert len(list(open_dataset(folder))) == 20
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_verifying_twice_at_once_marks_once(tmp_path):
    folder = write_images(tmp_path / "data", samples=20, per_shard=5)
    shard = folder / "000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[600] ^= 1
    shard.write_bytes(raw)
    works = [lambda decode=decode: verify(open_marked(folder), decode, 1) for decode in (True, True, False)]
    for _ in range(4):
        assert not run_at_once(*works)
        assert open_dataset(folder).manifest.marks.samples == 1


def test_packing_the_same_twice_at_once_packs_once_and_says_so(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(50)))
    source = plan_jsonl([tmp_path / "in.jsonl"], 200)
    for round_ in range(4):
        out = tmp_path / str(round_)
        works = [lambda out=out: pack(source, out, 200, 1)] * 2
        assert [str(error) for error in run_at_once(*works)] == [
            f"{out}: already holds a packed data set; choose another folder or remove it"
        ]
        assert len(list(open_dataset(out))) == 50


def test_marks_of_data_that_were_indexed_anew_meanwhile_are_not_written(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "data", samples=4)
    raw = bytearray((folder / "000000.tar").read_bytes())
    raw[600] ^= 1
    (folder / "000000.tar").write_bytes(raw)

    def index_meanwhile(*arguments):
        found = run_jobs(*arguments)
        index(str(folder), with_crc=False)
        return found

    monkeypatch.setattr(verifying, "run_jobs", index_meanwhile)
    with pytest.raises(UserError, match="was indexed anew meanwhile"):
        verify(open_marked(folder), True, 1)
    assert open_dataset(folder).manifest.marks is None


def test_a_lock_that_is_removed_by_who_had_it_locks_those_who_wait(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(50):
            with locked(tmp_path / "lock", fleeting=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    assert not run_at_once(work, work, work)
    assert max(most) == 1 and not (tmp_path / "lock").exists()
