"""Files that are there as a whole or not at all, as readable as the umask asks, on a disk that may be full."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_tools.storage.atomic import (
    atomic_file,
    describe_full_disk,
    follow_umask,
    read_umask,
    write_atomically,
)
from data_tools.storage.cache_folder import build_once
from pretrain.tracking.metrics import MetricsFile
from tests.faults.full_disk import FULL, on_a_small_disk


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_whatever_writes_a_file_its_permissions_follow_the_umask(umask, tmp_path):
    write_atomically(tmp_path / "bytes", b"1")
    write_atomically(tmp_path / "text", "1")
    with atomic_file(tmp_path / "tensors") as partial:
        save_file({"a": torch.zeros(1)}, partial)
    MetricsFile(tmp_path).close()
    build_once(tmp_path / "built", lambda folder: write_atomically(folder / "file", b""))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert mode(tmp_path / "built") == 0o777 & ~umask
    assert read_umask() == umask


def test_a_folder_that_libraries_wrote_follows_the_umask_too(umask, tmp_path):
    folder = tmp_path / "release"
    folder.mkdir(mode=0o700)
    (folder / "model.safetensors").touch(mode=0o600)
    follow_umask(folder)
    assert mode(folder) == 0o777 & ~umask
    assert mode(folder / "model.safetensors") == 0o666 & ~umask


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "file", "old")

    def fail() -> None:
        with atomic_file(tmp_path / "file") as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


WRITERS = {
    "bytes": "write_atomically(place / 'file', bytes(3_000_000))",
    "tensors": """
with atomic_file(place / 'file', 3_000_000) as partial:
    save_file({'a': torch.zeros(750_000)}, partial)
""",
    "release": "write_whole(place / 'file', lambda folder: save_file({'a': torch.zeros(750_000)}, folder / 'a'))",
    "metrics": "MetricsFile(place).write({'text': 'x' * 3_000_000})",
}


SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from data_tools.storage.atomic import atomic_file, write_atomically
from data_tools.errors import run_cli
from pretrain.release.release import write_whole
from pretrain.tracking.metrics import MetricsFile

for code in sys.argv[2:]:
    place = Path(sys.argv[1])
    print(run_cli(lambda: exec(code)))
    for left in place.iterdir():
        left.unlink()
"""


@pytest.mark.slow
def test_a_full_disk_is_named_with_what_was_needed_and_what_is_free(tmp_path):
    codes = [code.strip() for code in WRITERS.values()]
    result = on_a_small_disk(tmp_path, "1m", [sys.executable, "-c", SCRIPT, str(tmp_path), *codes])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2"] * len(WRITERS)
    for writer, told in zip(WRITERS, result.stderr.splitlines(), strict=True):  # a line each
        found = FULL.search(told)
        assert found, told
        assert found["mount"] == str(tmp_path)
        assert found["needed"] == (None if writer == "release" else "3.0 MB")
        assert found["free"] == "1.0 MB"


def test_a_disk_that_lacks_little_is_told_in_small_units(tmp_path):
    told = describe_full_disk(tmp_path, 812, 0)
    assert told.endswith(", 812 bytes needed, 0 bytes free")
    assert describe_full_disk(tmp_path, None, 4_096).endswith("), 4.1 kB free")
    assert describe_full_disk(tmp_path, 120_000_000, 3_100_000_000).endswith(", 120.0 MB needed, 3.1 GB free")
