import json

import numpy as np
import pytest
import webdataset as wds
from small_data import write_images

from data_tools.__main__ import main
from data_tools.dataset.foreign_indexes import export_dali, export_energon, import_wids
from data_tools.dataset.open import open_dataset
from data_tools.dataset.selection import write_selection
from data_tools.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "data", samples=30, per_shard=12)


def test_wids_index_is_imported_and_checked(folder, tmp_path):
    shards = [{"url": f"{i:06d}.tar", "nsamples": n} for i, n in enumerate((12, 12, 6))]
    (folder / "wids.json").write_text(json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": shards}))
    assert import_wids(folder / "wids.json", tmp_path / "out").samples.tolist() == [12, 12, 6]
    assert [s["__key__"] for s in open_dataset(tmp_path / "out")] == [f"{i:06d}" for i in range(30)]
    shards[1]["nsamples"] = 13
    (folder / "wids.json").write_text(json.dumps({"shardlist": shards}))
    with pytest.raises(UserError, match="says 13 samples, the shard has 12"):
        import_wids(folder / "wids.json", tmp_path / "other")


def test_energon_index_goes_out_and_comes_back(folder):
    before = [s["__key__"] for s in open_dataset(folder)]
    assert main(["index", str(folder), "--export", "energon", "--processes", "1"]) == 0
    offsets = np.frombuffer((folder / "000000.tar.idx").read_bytes(), dtype="<u8")
    assert len(offsets) == 13
    for path in [folder / "manifest.json", *folder.glob("*.sidecar")]:
        path.unlink()
    assert main(["index", str(folder), "--import", "energon"]) == 0
    assert [s["__key__"] for s in open_dataset(folder)] == before
    (folder / "000000.tar.idx").write_bytes(offsets[:-1].tobytes())
    from data_tools.errors import run_cli

    assert run_cli(lambda: main(["index", str(folder), "--import", "energon"])) == 2


def test_dali_index_points_at_the_payloads(folder):
    assert main(["index", str(folder), "--export", "dali", "--processes", "1"]) == 0
    lines = (folder / "000001.dali.idx").read_text().splitlines()
    assert lines[0] == "v1.2 12"
    theirs = list(wds.WebDataset(str(folder / "000001.tar"), shardshuffle=False))
    data = (folder / "000001.tar").read_bytes()
    for line, sample in zip(lines[1:], theirs, strict=True):
        words = line.split()
        for extension, offset, size, name in zip(*(words[i::4] for i in range(4)), strict=True):
            assert data[int(offset) : int(offset) + int(size)] == sample[extension]
            assert name == f"{sample['__key__']}.{extension}"


@pytest.mark.parametrize("export", [export_energon, export_dali])
def test_no_index_of_a_selection_is_written_beside_the_shards_of_all(folder, tmp_path, export):
    """It would say that what lies between two chosen samples belongs to the first."""
    write_selection(open_dataset(folder), np.array([0, 2, 5]), tmp_path / "chosen")
    before = set(folder.iterdir())
    with pytest.raises(UserError, match=r"its shards lie elsewhere, such as .*000000\.tar"):
        export(open_dataset(tmp_path / "chosen"))
    assert set(folder.iterdir()) == before
