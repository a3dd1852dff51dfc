"""Which tars are read, and which place is written to, where names say the same thing twice, or lead elsewhere."""

from __future__ import annotations

import gzip
import json

import pytest
from small_data import png, write_images
from store_server import store_server

from data_tools.dataset.index import index_shards
from data_tools.dataset.open import open_dataset
from data_tools.dataset.selection import write_selection
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset


@pytest.fixture
def tars(tmp_path):
    """Two tars of three samples, without a manifest."""
    folder = write_images(tmp_path / "tars", 6, 3)
    for path in [folder / "manifest.json", *folder.glob("*.sidecar")]:
        path.unlink()
    return folder


def test_a_link_to_a_tar_beside_it_does_not_count_twice(tars, caplog):
    (tars / "0-latest.tar").symlink_to("000001.tar")
    assert len(open_dataset(tars)) == 6
    assert f"0-latest.tar: left out: a link to {tars / '000001.tar'}" in caplog.text
    with pytest.raises(UserError, match=r"000001.tar: is named twice, perhaps by a link"):
        open_dataset(str(tars / "*.tar"))


def test_a_shard_that_is_away_is_an_error_and_a_folder_is_told(tars, tmp_path, caplog):
    (tars / "part2").symlink_to(tmp_path / "unmounted")
    (tars / "README.md").symlink_to(tmp_path / "unmounted" / "README.md")
    assert len(open_dataset(tars)) == 6
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [str(tars / "part2")]
    (tars / "000002.tar").symlink_to(tmp_path / "unmounted" / "000002.tar")
    with pytest.raises(UserError, match=r"000002\.tar: broken link: .* is not there; mount what is away"):
        open_dataset(tars)


def test_endings_in_capitals_are_endings(tars):
    (tars / "000001.tar").rename(tars / "000001.TAR")
    assert len(open_dataset(tars)) == len(open_dataset(str(tars / "*"))) == 6
    (tars / "000000.TGZ").write_bytes(gzip.compress((tars / "000000.tar").read_bytes()))
    (tars / "000000.tar").unlink()
    assert len(open_dataset(tars)) == 6


def test_nothing_is_written_where_a_manifest_of_others_leads(tmp_path):
    given = write_images(tmp_path / "given" / "shards", 6, 3)
    manifest = json.loads((given / "manifest.json").read_text())
    manifest["about"]["tokenizer"] = "../config"
    (given / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "given" / "config").mkdir()
    (tmp_path / "given" / "config" / "settings.json").write_text("{}")
    dataset = open_dataset(given)
    assert write_selection(dataset, [0, 4], tmp_path / "mine" / "out").about["tokenizer"] == "tokenizer"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["out"]


def write_pictures(folder, first):
    writer = ShardWriter(folder)
    for number in range(4):
        writer.write(f"{number}", {"png": png(first + number)})
    finish_dataset(writer)
    return folder / "000000.tar"


def test_data_joined_anew_after_an_index_without_crc_know_what_was_replaced(tmp_path):
    with store_server(tmp_path) as (url, server):
        server.tells_etag = True

        def index():
            for name in "ab":
                index_shards([f"{url}/{name}/000000.tar"], tmp_path / f"index-{name}", with_crc=False)

        def joined():
            return open_dataset([tmp_path / "index-a", tmp_path / "index-b"])

        before = write_pictures(tmp_path / "a", 0).read_bytes()
        write_pictures(tmp_path / "b", 10)
        index()
        first = joined()[0]["image"]
        assert len(write_pictures(tmp_path / "a", 20).read_bytes()) == len(before)
        with pytest.raises(UserError, match="was replaced since it was indexed"):
            joined()[0]
        index()
        assert not (joined()[0]["image"] == first).all()
