"""What servers answer instead of what was asked for: it is not taken for data, and not waited for in vain."""

import time
from pathlib import Path

import pytest
from bad_server import bad_server
from small_data import write_images
from store_server import store_server

from data_tools.commands.index import index
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.scan import scan_remote
from data_tools.storage.location import location_of
from data_tools.storage.objects import Retry, read_range, read_whole
from data_tools.storage.segments import FetchOptions
from data_tools.storage.upload import upload

PATIENT = Retry(patience=60, first_wait=0.01)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "data", samples=4, per_shard=2)


@pytest.mark.parametrize(
    "answer, message",
    [
        ({"status": 302}, "cannot be opened .HTTP 302"),
        ({"status": 304}, "cannot be opened .HTTP 304"),
        ({"status": 204}, "cannot be opened .HTTP 204"),
        ({"status": 302, "headers": {"Location": "/a.tar"}}, "redirected again and again"),
    ],
)
def test_an_answer_without_the_data_is_none_and_ends_at_once(folder, tmp_path, answer, message):
    begun = time.monotonic()
    with store_server(folder) as (url, server):
        server.always = answer
        with pytest.raises(UserError, match=message):
            read_range(f"{url}/a.tar", 0, 10, PATIENT)
        with pytest.raises(UserError, match=message):
            read_whole(f"{url}/a.tar", tmp_path / "copy", PATIENT)
    assert time.monotonic() - begun < PATIENT.patience / 2


def test_https_of_a_server_without_it_ends_at_once(folder):
    begun = time.monotonic()
    with store_server(folder) as (url, _), pytest.raises(UserError, match="speaks no https on this port"):
        read_range(url.replace("http", "https") + "/a.tar", 0, 10, PATIENT)
    assert time.monotonic() - begun < PATIENT.patience / 2


@pytest.mark.parametrize("fault", ["short", "truncate"])
def test_a_shard_of_which_less_comes_is_not_indexed_as_a_shorter_one(folder, fault):
    with bad_server(folder) as (url, server):
        server.faults = {"000000.tar": fault}
        with pytest.raises(UserError, match=r"000000.tar: the store sends less than the [\d,]+ bytes it has"):
            scan_remote(f"{url}/000000.tar", retry=Retry(patience=5, first_wait=0.001, longest_wait=0.001))


def test_a_page_in_place_of_a_manifest_is_named_by_its_url(folder):
    with bad_server(folder) as (url, server):
        server.faults = {"manifest.json": "html"}
        with pytest.raises(UserError, match=f"^{url}/manifest.json: not a manifest"):
            open_dataset(url)


def test_braces_are_indexed_and_schemes_may_be_capitals(folder, tmp_path):
    with store_server(folder) as (url, _):
        manifest, bad = index(f"{url}/{{000000..000001}}.tar", tmp_path / "index")
        assert (len(manifest.urls), bad) == (2, [])
        assert len(open_dataset(url.replace("http", "HTTP"))) == 4


def test_what_names_nothing_or_one_tar_twice_is_refused(folder):
    tar = str(folder / "000000.tar")
    for source, message in (("", "name is empty"), ([""], "name is empty"), ([tar, tar], "is named twice")):
        with pytest.raises(UserError, match=message):
            open_dataset(source)
    for malformed in ("http://[::1/a.tar", "http://[::1/a.tar?b"):
        with pytest.raises(UserError, match="is no URL"):
            open_dataset(malformed, fetching=FetchOptions(retry=PATIENT))
    with pytest.raises(UserError, match="is no URL"):
        location_of("https://[::1/a?b")


def test_an_upload_opens_the_store_with_its_options(tmp_path):
    from data_tools.storage.options import StorageOptions

    (tmp_path / "a").write_bytes(b"a")
    store = tmp_path / "store"
    options = StorageOptions(other={"auto_mkdir": True})
    upload(tmp_path, ["a"], f"local://{store}/below", Retry(storage=options))
    assert (store / "below" / "a").read_bytes() == b"a"


def test_a_disk_that_is_full_at_the_last_byte_is_no_fault_of_the_server(tmp_path):
    """What is written in small pieces is on the disk when the file is closed only."""
    (tmp_path / "small").write_bytes(b"x" * 1000)
    with store_server(tmp_path) as (url, server):
        with pytest.raises(UserError, match="no space left on device; make room"):
            read_whole(f"{url}/small", Path("/dev/full"), Retry(patience=30))
        assert len(server.requests) == 1
