"""Folders of photographs as people have them: what becomes a class, what a sample, and what is said of the rest."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from odd_images import encode, gradient
from PIL import Image
from small_data import png

from data_tools.__main__ import main
from data_tools.commands.pack import pages
from data_tools.commands.show import contact_sheet, excerpt
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.storage.folders import walk_folder


def pack(*words) -> int:
    return run_cli(lambda: main(["pack", "images", *map(str, words), "--processes", "1"]))


def fill(folder: Path, count: int = 4, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i}.png").write_bytes(png(i))
    return folder


def skipped(out: Path) -> dict[str, str]:
    lines = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    return {Path(line["name"]).name: line["reason"] for line in lines}


def test_links_are_followed_and_loops_are_not(tmp_path):
    photos = fill(tmp_path / "photos" / "cat").parent
    fill(tmp_path / "disk2" / "dog" / "puppies")
    (photos / "dog").symlink_to(tmp_path / "disk2" / "dog")
    (photos / "alias").symlink_to(photos / "cat")
    (photos / "cat" / "up").symlink_to("..")
    (photos / "cat" / "out").symlink_to(tmp_path)
    (tmp_path / "disk2" / "dog" / "back").symlink_to(photos)
    (photos / "bird").symlink_to(tmp_path / "unplugged")
    os.mkfifo(photos / "cat" / "pipe.jpg")
    walk = walk_folder(photos)
    assert {path.relative_to(photos).parts[0] for path in walk.files} == {"cat", "dog"} and len(
        walk.files
    ) == 8
    reasons = {path.name: reason.split(":")[0] for path, reason in walk.passed_over}
    assert reasons == {
        "alias": "link",
        "up": "loop",
        "out": "loop",
        "back": "link",
        "bird": "broken link",
        "pipe.jpg": "no file",
    }
    (tmp_path / "link").symlink_to(photos)
    assert len(walk_folder(tmp_path / "link").files) == 8


def test_links_to_texts_and_shards_are_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.txt").write_text("one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "2.TXT").write_text("two")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "other")
    assert main(["pack", "text", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert [sample["text"] for sample in open_dataset(tmp_path / "out")] == ["one", "two"]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "linked").symlink_to(tmp_path / "out")
    assert len(open_dataset(tmp_path / "tars")) == 2
    assert main(["index", str(tmp_path / "tars")]) == 0
    assert len(open_dataset(tmp_path / "tars")) == 2


def test_what_is_no_class_takes_no_label_away_and_is_told(tmp_path, capsys):
    photos = fill(tmp_path / "photos" / "cat", 20).parent
    fill(photos / "dog", 20, first=20)
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir"):
        fill(photos / name, 1)
    (photos / "logo.png").write_bytes(png(99))
    (photos / "notes.txt").write_text("seen in May")
    (photos / "cat" / "._0.png").write_bytes(b"resource fork")
    (photos / "cat" / "empty.jpg").write_bytes(b"")
    (photos / "dog" / "🐕 Ärger.png").write_bytes(png(77))
    assert pack(photos, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest.about["classes"] == ["cat", "dog"]
    assert sorted(sample["label"] for sample in dataset) == [0] * 20 + [1] * 21
    assert "dog/🐕 Ärger" in set(dataset.keys())
    said = capsys.readouterr().out
    assert "2 classes: cat 20, dog 21\n" in said and "skipped 8 unusable inputs" in said
    assert "5 hidden; first " in said and "1 empty; first " in said and "1 .txt files; first " in said
    assert skipped(tmp_path / "out")["logo.png"] == "beside the class folders: has no class"


def test_a_question_is_asked_where_the_layout_does_not_say_what_is_a_class(tmp_path, capsys):
    photos = fill(tmp_path / "photos" / "2019", 3).parent
    fill(photos, 5, first=10)
    assert pack(photos, tmp_path / "out") == 2
    assert "3 files lie in 1 folders, 5 beside them; say --labels folder" in capsys.readouterr().err
    assert pack(photos, tmp_path / "all", "--labels", "none") == 0
    assert len(open_dataset(tmp_path / "all")) == 8
    assert pack(photos, tmp_path / "some", "--labels", "folder") == 0
    assert len(open_dataset(tmp_path / "some")) == 3


def test_splits_are_no_classes_and_two_packs_share_their_numbers(tmp_path, capsys):
    for split, classes in (("train", ("cat", "dog", "horse")), ("val", ("dog", "horse"))):
        for name in classes:
            fill(tmp_path / "pets" / split / name)
    pets = tmp_path / "pets"
    assert pack(pets, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"`pack images {pets}/train OUT/train`" in said
    assert f"`pack images {pets}/val OUT/val --classes OUT/train`" in said
    assert pack(pets, tmp_path / "forced", "--labels", "folder") == 0
    assert pack(pets / "train", tmp_path / "train") == 0
    (tmp_path / "names.txt").write_text("cat\ndog\nhorse\n")
    (tmp_path / "names.json").write_text('["cat", "dog", "horse"]')
    for i, source in enumerate(("train", "pets/train", "names.txt", "names.json")):
        assert pack(pets / "val", tmp_path / f"val{i}", "--classes", tmp_path / source) == 0
        val = open_dataset(tmp_path / f"val{i}")
        assert val.manifest.about["classes"] == ["cat", "dog", "horse"]
        assert sorted(sample["label"] for sample in val) == [1] * 4 + [2] * 4
    assert "cat 0, dog 4, horse 4" in capsys.readouterr().out
    assert pack(pets / "train", tmp_path / "no", "--classes", tmp_path / "pets" / "val") == 2
    assert "class 'cat' is not among the 2" in capsys.readouterr().err


def test_extensions_are_read_or_listed_with_the_reason(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpeg", "b.JPG", "c.jfif", "d.jpe"):
        (folder / name).write_bytes(encode(gradient(), "JPEG"))
    (folder / "e.jp2").write_bytes(encode(gradient(), "JPEG2000"))
    (folder / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "g.dcm").write_bytes(b"DICM")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert pack(folder, tmp_path / "out") == 0
    assert len(open_dataset(tmp_path / "out")) == 5
    reasons = skipped(tmp_path / "out")
    assert "pip install masquerade[heic]" in reasons["f.heic"] and reasons["g.dcm"].startswith(".dcm files: ")


def test_a_photograph_and_its_mask_are_a_data_set_of_images(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("both", {"png": png(1), "jpg": encode(gradient(), "JPEG")})
        writer.write("one", {"png": png(2)})
        finish_dataset(writer)
    dataset = open_dataset(tmp_path)
    assert dataset.fields["image"] == "jpg"
    assert [sample["image"].shape[2] for sample in dataset] == [3, dataset[1]["image"].shape[2]]
    assert "png" in dataset[0]


def test_the_first_page_is_read_and_said_and_all_are_by_setting(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    deep = [Image.fromarray(np.full((4, 5), 1000 * i, dtype=np.uint16)) for i in range(1, 4)]
    (folder / "scan.tif").write_bytes(encode(deep[0], "TIFF", save_all=True, append_images=deep[1:]))
    turned = [gradient(), gradient().rotate(180)]
    (folder / "film.gif").write_bytes(encode(turned[0], "GIF", save_all=True, append_images=turned[1:]))
    (folder / "plain.png").write_bytes(png(1))
    (folder / "height.tif").write_bytes(
        encode(Image.fromarray(np.full((3, 3), 7.5, dtype=np.float32)), "TIFF")
    )
    assert pack(folder, tmp_path / "first") == 0
    said = capsys.readouterr().out
    assert "\n2 of several pages or frames, of which the first is read" in said
    assert "\n1 of 32 bits or floats, which do not say what is white" in said
    assert len(open_dataset(tmp_path / "first")) == 4
    assert pack(folder, tmp_path / "all", "--pages", "all") == 0
    found = {sample["__key__"]: sample["image"] for sample in open_dataset(tmp_path / "all")}
    assert len(found) == 7
    assert [int(found[f"scan_page{i:05d}"][0, 0, 0]) for i in range(3)] == [1000, 2000, 3000]
    with pytest.raises(DecodeError, match="3 pages of 5×4 are beyond the limit"):
        list(pages.split_pages((folder / "scan.tif").read_bytes(), DecodeOptions(max_page_values=40)))


def test_a_label_that_is_no_number_names_shard_and_sample(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("a/3", {"png": png(1), "cls": b"nan"})
        finish_dataset(writer)
    with pytest.raises(
        DamagedSampleError, match=r"000000\.tar: sample a/3: \.cls: not a class number: 'nan'"
    ):
        open_dataset(tmp_path)[0]


def test_a_look_at_the_data_shows_what_is_transparent_or_deep_and_names_classes():
    alpha = np.zeros((8, 8, 4), dtype=np.uint8)
    depth = np.linspace(0, 70_000, 64, dtype=np.float32).reshape(8, 8, 1)
    sheet = contact_sheet([{"__key__": "a", "image": alpha}, {"__key__": "b", "image": depth}])
    assert excerpt({"__key__": "c", "label": 1, "text": "wuff"}, ["cat", "dog"]) == "[c] dog\n  wuff"
    assert np.asarray(sheet)[20, 20].tolist() == [255, 255, 255]
    assert len(np.unique(np.asarray(sheet))) > 10


def test_names_that_are_no_utf8_are_packed_and_printed(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"th\xe9")
    fill(folder, 2)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="utf-8"))
    assert pack(folder.parent, tmp_path / "out", "--labels", "folder") == 0
    assert b"1 classes: th\\udce9 2\n" in said.getvalue() and b"\\udcff.png (0 bytes)" in said.getvalue()
    assert len(open_dataset(tmp_path / "out")) == 2


def test_names_of_classes_are_refused_where_they_are_none(tmp_path):
    from data_tools.commands.pack.classes import read_class_names

    (tmp_path / "twice").write_text("cat\ncat\n")
    for source, message in (("nowhere", "no such file"), ("twice", "twice"), (".", "names no classes")):
        with pytest.raises(UserError, match=message):
            read_class_names(tmp_path / source)


def test_class_folders_without_anything_to_read_are_said(tmp_path, capsys):
    photos = fill(tmp_path / "photos" / "cat").parent
    fill(photos / "mouse" / "grey")
    (photos / "dog" / "puppies").mkdir(parents=True)
    (photos / "bird").mkdir()
    (photos / "bird" / "notes.md").write_text("none yet")
    assert pack(photos, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "2 classes: cat 4, mouse 4" in told
    assert f"2 class folder without images; first {photos / 'bird'}" in told
    assert skipped(tmp_path / "out")["dog"] == "class folder without images"
    assert pack(photos, tmp_path / "bare", "--labels", "none") == 0
    assert set(skipped(tmp_path / "bare")) == {"notes.md"}
    for name in ("ham", "spam", "unsure"):
        (tmp_path / "mails" / name).mkdir(parents=True)
    for name in ("ham", "spam"):
        (tmp_path / "mails" / name / "1.txt").write_text(f"{name}!")
    assert run_cli(lambda: main(["pack", "text", str(tmp_path / "mails"), str(tmp_path / "texts")])) == 0
    assert skipped(tmp_path / "texts") == {"unsure": "class folder without texts"}
