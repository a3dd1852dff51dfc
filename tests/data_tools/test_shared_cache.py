"""The cache: where it lies, and that several users can share it."""

import os
import stat

import pytest
from small_data import write_images
from store_server import store_server

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage import segments
from data_tools.storage.cache_folder import (
    JOB_VARIABLES,
    SCRATCH_VARIABLES,
    cache_folder,
    make_shared_folder,
    share,
)
from data_tools.storage.segments import FetchOptions, SegmentCache

OTHER = 65534
"""A user without rights."""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment in which nobody has chosen a place; home is in the test's folder."""
    for name in ("MASQUERADE_CACHE", "XDG_CACHE_HOME", *JOB_VARIABLES, *SCRATCH_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_the_default_is_in_the_users_cache(bare, tmp_path):
    assert cache_folder() == tmp_path / ".cache" / "masquerade"
    bare.setenv("MASQUERADE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder(tmp_path / "asked") == tmp_path / "asked"
    assert FetchOptions(cache_folder=tmp_path / "asked").cache == tmp_path / "asked"


@pytest.mark.parametrize("job", JOB_VARIABLES)
def test_in_a_job_of_a_cluster_it_is_on_the_nodes_own_disk(bare, tmp_path, job):
    bare.setenv(job, "17")
    (tmp_path / "scratch").mkdir()
    bare.setenv("TMPDIR", str(tmp_path / "scratch"))
    place = cache_folder()
    assert place == tmp_path / "scratch" / f"masquerade-{os.getuid()}"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    bare.setenv("MASQUERADE_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"


def test_a_scratch_folder_that_somebody_else_made_is_not_taken(bare, tmp_path):
    bare.setenv("SLURM_JOB_ID", "17")
    bare.setenv("SLURM_TMPDIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"masquerade-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is another user's; set MASQUERADE_CACHE"):
        cache_folder()


@pytest.mark.parametrize(
    "above, folder, file",
    [
        (0o755, 0o755, 0o644),
        (0o700, 0o755, 0o644),
        (0o2770, 0o2775, 0o664),
        (0o777, 0o777, 0o666),
        (0o1777, 0o755, 0o644),
    ],
)
def test_what_is_made_in_a_cache_is_as_shared_as_the_cache(tmp_path, above, folder, file):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(above)
    before = os.umask(0o022)
    try:
        make_shared_folder(root / "a" / "b")
        (root / "a" / "b" / "c").write_text("")
        share(root / "a" / "b" / "c")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((root / place).stat().st_mode) for place in ("a", "a/b", "a/b/c")]
    assert modes == [folder, folder, file]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("is_shared", [True, False])
def test_two_users_share_a_cache_or_are_told_how(tmp_path, monkeypatch, is_shared):
    data, cache = write_images(tmp_path / "data", samples=20, per_shard=10), tmp_path / "cache"
    monkeypatch.setenv("MASQUERADE_CACHE", str(cache))
    cache.mkdir()
    cache.chmod(0o777 if is_shared else 0o755)
    for place in [tmp_path, *list(tmp_path.parents)[:3]]:
        if place.stat().st_mode & 0o005 != 0o005:
            place.chmod(0o755)
    with store_server(data) as (url, _):
        dataset = open_dataset(url)
        first, segment = dataset[0]["__key__"], dataset._store.segment(0, 0)

        def as_other():
            own = open_dataset(url) if is_shared else dataset
            assert own[0]["__key__"] == first
            own._store.cache().expect(segment, 5)
            own._store.cache().finished(segment)
            assert own[10]["__key__"] == "000010"

        if is_shared:
            assert run_as(OTHER, as_other) == "done"
        else:
            told = run_as(OTHER, as_other)
            assert told.startswith("UserError") and "the cache cannot be used (permission denied)" in told
            assert "set MASQUERADE_CACHE" in told and "chmod -R g+ws" in told


def run_as(user, work):
    """What a copy of this process does as another user: "done", or the error it ended with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(user)
            os.setuid(user)
            work()
            told = "done"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_what_a_killed_process_fetched_by_half_does_not_stay_for_ever(tmp_path, monkeypatch):
    def names_after_a_start():
        SegmentCache(tmp_path, str, FetchOptions())
        return sorted(path.name for path in tmp_path.iterdir())

    for name in ("00000000-00000000-8", ".00000000-00000008-8.17-140", ".00000001-whole.17-140"):
        (tmp_path / name).write_bytes(b"half")
    assert len(names_after_a_start()) == 4, "somebody may be at it"
    monkeypatch.setattr(segments, "LEFTOVER", -1)
    assert names_after_a_start() == [".locks", "00000000-00000000-8"]
