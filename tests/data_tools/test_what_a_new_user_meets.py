"""What a new user's odd files and places made the commands say, or leave unsaid."""

from __future__ import annotations

import errno
import json

import pytest

from data_tools import open_dataset
from data_tools.__main__ import main
from data_tools.commands.look_cli import _line
from data_tools.commands.pack.encodings import decode_bytes
from data_tools.commands.show import excerpt
from data_tools.storage.atomic import atomic_file

GREETING = "Здравствуйте, господин Иванов, пишу вам из Москвы. "


def pack(capsys, *arguments) -> str:
    assert main(["pack", *map(str, arguments), "--processes", "1"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("declared", "asked", "name"),
    [("KOI8-R", "utf-8", "koi8_r"), (None, "koi8-r", "koi8_r"), ("utf8", "auto", "utf-8"),
     ("windows-1252", "auto", "cp1252"), ("iso-8859-1", "auto", "cp1252"), ("shift_jis", "auto", "cp932")],
)  # fmt: skip
def test_an_encoding_has_one_name_whoever_named_it(declared, asked, name):
    text = {"koi8_r": GREETING, "cp932": "天気がいいですね①", "cp1252": "“schön”"}.get(name, "schön")
    assert decode_bytes(text.encode(name), asked, declared) == (text, name)


def test_empty_files_are_listed_as_that_whatever_they_are(tmp_path, capsys):
    mails, lines = tmp_path / "mails", tmp_path / "lines"
    for folder, names in ((mails, ("zero.eml", "zero.txt")), (lines, ("zero.jsonl",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
    (mails / "one.txt").write_text("one")
    (lines / "one.jsonl").write_text('{"text": "one"}\n')
    assert "  2 empty; first" in pack(capsys, "text", mails, tmp_path / "a")
    assert f"  1 empty; first {lines / 'zero.jsonl'}" in pack(capsys, "jsonl", lines, tmp_path / "b")


def test_a_quote_that_is_never_closed_does_not_swallow_rows(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('text,a\nx,1\n"y,2\nz,3\n')
    out = pack(capsys, "csv", tmp_path / "a.csv", tmp_path / "shards")
    assert "1 a quote that is never closed; first" in out and "line 3" in out
    assert [sample["text"] for sample in open_dataset(str(tmp_path / "shards"))] == ["x"]


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_table_whose_last_field_is_quoted_is_whole(tmp_path, capsys, end):
    (tmp_path / "a.csv").write_text(f'a,text\n1,"x\ny"\n2,"z"{end}')
    assert "skipped" not in pack(capsys, "csv", tmp_path / "a.csv", tmp_path / "shards")
    assert len(open_dataset(str(tmp_path / "shards"))) == 2


@pytest.mark.parametrize("keep", [[], ["cls"]])
def test_tokens_without_labels_name_no_classes(tmp_path, capsys, keep):
    for name in ("ham", "spam"):
        (tmp_path / "mails" / name).mkdir(parents=True)
        (tmp_path / "mails" / name / "a.txt").write_text(f"{name} and more {name}")
    pack(capsys, "text", tmp_path / "mails", tmp_path / "shards")
    assert main(["tokenizer", str(tmp_path / "shards"), str(tmp_path / "tok"), "--vocabulary", "300"]) == 0
    capsys.readouterr()
    places = ["tokenize", str(tmp_path / "shards"), str(tmp_path / "tokens")]
    assert main([*places, "--tokenizer", str(tmp_path / "tok"), "--keep", *keep, "--processes", "1"]) == 0
    assert ("2 classes: ham 1, spam 1" in capsys.readouterr().out) == bool(keep)
    about = json.loads((tmp_path / "tokens" / "manifest.json").read_text())["about"]
    assert about.get("classes") == (["ham", "spam"] if keep else None)


def test_names_of_any_characters_and_many_of_them_stay_on_one_line():
    line = _line({"groups": [[f"dogs/{i}\n\x1b[2J\udce9😀" for i in range(100)]]})
    assert line.isprintable() and "dogs/0\\n\\x1b[2J\\udce9😀" in line and line.endswith("… and 80 more]]")
    assert excerpt({"__key__": "a\nb", "text": "x\ny\x1b[2J"}) == "[a\\nb] a\\nb\n  x y\\x1b[2J"


def test_a_place_that_cannot_be_written_is_named_and_no_temporary_file(tmp_path):
    with pytest.raises(OSError) as found, atomic_file(tmp_path / "x.png") as partial:
        raise OSError(errno.EROFS, "Read-only file system", str(partial))
    assert found.value.filename == str(tmp_path / "x.png") and found.value.errno == errno.EROFS
