"""Text as people have it: whatever its encoding, damage or layout, a bad piece costs itself and is listed."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import ShardWriter, finish_dataset, open_dataset
from data_tools.__main__ import main
from data_tools.commands.pack import encodings, json_values, text_files
from data_tools.commands.pack.encodings import decode_bytes, guess_encoding
from data_tools.commands.pack.markup import mail_text, page_text
from data_tools.commands.pack.text import plan_csv, plan_jsonl, plan_text
from data_tools.decode.options import DecodeError
from data_tools.errors import run_cli


def command(*words: Any) -> int:
    return run_cli(lambda: main([str(word) for word in (*words, "--processes", 1)]))


def packed(tmp_path: Path, *words: Any) -> list[dict[str, Any]]:
    """The samples that `pack` makes of `in`, in order."""
    assert command("pack", words[0], tmp_path / "in", tmp_path / "out", *words[1:]) == 0
    return list(open_dataset(tmp_path / "out"))


def listed(tmp_path: Path) -> list[tuple[str, str]]:
    """(name, reason) of what was skipped."""
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    return [(Path(entry["name"]).name, entry["reason"]) for entry in map(json.loads, lines)]


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, raw in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(raw)


def test_one_bad_line_costs_that_line(tmp_path):
    good = [json.dumps({"text": f"number {i}", "i": i}) for i in range(4)]
    deep = '{"text": "x", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}"
    lines = [
        good[0].encode(),
        b'{"text": "caf\xe9"}',
        good[1].encode(),
        deep.encode(),
        b"{",
        b"5",
        good[2].encode(),
    ]
    write(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(lines), "b.jsonl": good[3].encode()})
    assert [s["text"] for s in packed(tmp_path, "jsonl")] == [f"number {i}" for i in range(4)]
    reasons = [reason.split(":")[0].split(" (")[0] for _, reason in listed(tmp_path)]
    assert reasons == ["not UTF-8", "nested too deeply", "not JSON", "no such text"]
    assert all(name.startswith("a.jsonl (byte ") for name, _ in listed(tmp_path))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_arrays_and_objects_that_span_lines_are_read_piece_by_piece(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(json_values, "BLOCK", block)
    values = [{"text": f"é 你 {i}" * 3, "n": [i, {"x": "]}"}], "z": -1.5e3} for i in range(20)]
    whole = json.dumps(values, indent=2, ensure_ascii=False).encode().replace(b"\n", b"\r\n")
    spoiled = whole.replace("é 你 7".encode(), b"\xe9 7", 1).replace(
        b'"text": "\xc3\xa9 \xe4\xbd\xa0 9', b'"t": "9', 1
    )
    write(tmp_path, {name: gzip.compress(spoiled) if name.endswith("gz") else spoiled})
    samples = packed(tmp_path, "jsonl")
    assert [s["text"] for s in samples] == [v["text"] for i, v in enumerate(values) if i not in (7, 9)]
    assert samples[0]["json"] == {"file": name, "n": [0, {"x": "]}"}], "z": -1500.0}
    assert [reason[:7] for _, reason in listed(tmp_path)] == ["not UTF", "no such"]


def test_folders_of_json_files_hold_one_object_each_or_lines(tmp_path):
    files = {f"{i:03d}.json": json.dumps({"text": f"t{i}"}, indent=1).encode() for i in range(30)}
    files["lines.json"] = b'{"text": "one"}\n{"text": "tw\n{"text": "three"}\n'
    files["broken.json"] = b'[{"text": "first"}, {"text" "second"}, {"text": "third"}]'
    write(tmp_path, files)
    samples = packed(tmp_path, "jsonl")
    assert {s["json"]["file"]: s["text"] for s in samples if "json" in s} == {
        **{f"{i:03d}.json": f"t{i}" for i in range(30)}, "broken.json": "first",
    }  # fmt: skip
    assert [s["text"] for s in samples if "json" not in s] == ["one", "three"]
    assert {name.split(" ")[0] for name, _ in listed(tmp_path)} == {"lines.json", "broken.json"}
    assert "what follows it in the file is lost too" in dict(listed(tmp_path))["broken.json (byte 20)"]


MIXED = {
    "utf8.txt": "naïve – 你好".encode(),
    "mark.txt": b"\xef\xbb\xbfna\xc3\xafve",
    "utf16.txt": "Grüße\r\nzwei".encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + "Grüße".encode("utf-16-be"),
    "windows.txt": "“naïve” – résumé\r\n€ 5\r\n".encode("cp1252"),
    "latin.txt": b"caf\xe9",
    "polish.txt": "Dziękuję, w załączniku przesyłam list".encode("iso-8859-2"),
    "czech.txt": "Dobrý den, děkuji za přílohu".encode("cp1250"),
    "russian.txt": "Уважаемые коллеги, отчет за прошлый месяц".encode("koi8-r"),
    "japanese.txt": "資料を添付しますのでご確認ください。".encode("cp932"),
    "bare16.txt": "Hello there, a file of Windows".encode("utf-16-le"),
    "mac.txt": b"one\rtwo",
    "nul.txt": b"a" * 300 + b"\0",
}
TEXTS = {
    "utf8.txt": "naïve – 你好", "mark.txt": "naïve", "utf16.txt": "Grüße\nzwei", "utf16be.txt": "Grüße",
    "windows.txt": "“naïve” – résumé\n€ 5", "latin.txt": "café", "polish.txt": "Dziękuję, w załączniku przesyłam list",
    "czech.txt": "Dobrý den, děkuji za přílohu", "russian.txt": "Уважаемые коллеги, отчет за прошлый месяц",
    "japanese.txt": "資料を添付しますのでご確認ください。", "bare16.txt": "Hello there, a file of Windows",
    "mac.txt": "one\ntwo", "nul.txt": "a" * 300,
}  # fmt: skip
BINARY = {"program.txt": bytes(range(256)) * 8}


@pytest.mark.parametrize("document", ["file", "paragraph"])
def test_every_file_is_read_in_its_own_encoding(tmp_path, document):
    write(tmp_path, MIXED | BINARY)
    samples = packed(tmp_path, "text", "--encoding", "auto", "--document", document)
    assert {s["json"]["file"]: s["text"] for s in samples if s["json"]["file"] != "program.txt"} == TEXTS
    assert {name for name, _ in listed(tmp_path)} == {"program.txt"}
    if document == "file":
        assert {s["json"]["file"]: s["json"].get("encoding") for s in samples}["polish.txt"] == "iso8859_2"


def test_without_auto_what_is_not_utf8_is_listed_with_the_remedy(tmp_path, capsys):
    write(tmp_path, MIXED | BINARY)
    samples = packed(tmp_path, "text")
    lost = {
        "windows.txt",
        "latin.txt",
        "polish.txt",
        "czech.txt",
        "russian.txt",
        "japanese.txt",
        "program.txt",
    }
    assert {s["json"]["file"] for s in samples} == set(TEXTS) - lost - {"bare16.txt"}
    assert {name for name, _ in listed(tmp_path)} == lost | {"bare16.txt"}
    assert "let --encoding auto find it" in dict(listed(tmp_path))["latin.txt"]
    told = capsys.readouterr().out
    assert "  7 not UTF-8; first " in told and "  1 no text; first " in told


def test_lines_of_one_file_may_be_in_two_encodings(tmp_path):
    lines = ["Größe und Maße".encode(), "Größe und Maße".encode("cp1252"), b"plain"]
    write(tmp_path, {"log.txt": b"\r\n".join(lines)})
    assert [s["text"] for s in packed(tmp_path, "text", "--encoding", "auto", "--document", "line")] == [
        "Größe und Maße", "Größe und Maße", "plain",
    ]  # fmt: skip


def test_utf16_is_read_by_lines_and_a_damaged_one_costs_itself(tmp_path):
    raw = "eins\r\nzwei\r\ndrei\r\n".encode("utf-16-le").replace("w".encode("utf-16-le"), b"\x00\xd8")
    write(tmp_path, {"a.txt": b"\xff\xfe" + raw})
    assert [s["text"] for s in packed(tmp_path, "text", "--document", "line")] == ["eins", "drei"]
    assert len(listed(tmp_path)) == 1


def test_a_mark_in_the_shards_of_others_is_no_character(tmp_path):
    with ShardWriter(tmp_path / "sh") as writer:
        writer.write("a", {"txt": b"\xef\xbb\xbftext"})
        finish_dataset(writer)
    assert open_dataset(tmp_path / "sh")[0]["text"] == "text"


def test_a_lone_surrogate_is_the_replacement_character(tmp_path):
    write(tmp_path, {"a.jsonl": rb'{"text": "a\ud800b \ud83d\ude00", "of": "\udfff", "nul": "\u0000"}'})
    (sample,) = packed(tmp_path, "jsonl")
    assert sample["text"] == "a\ufffdb 😀"
    assert sample["json"] == {"of": "\ufffd", "nul": "\0"}


MAIL = b"From: a@example.org\r\nSubject: =?iso-8859-1?Q?Gr=FC=DFe?= =?bad?Q?x?=\r\n"
MAILS = {
    "declared": (MAIL + b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\n\x93caf\xe9\x94", "“café”"),
    "undeclared": (MAIL + b"\r\ncaf\xe9", "café"),
    "wrong": (MAIL + b"Content-Type: text/plain; charset=us-ascii\r\n\r\nna\xc3\xafve", "naïve"),
    "unknown": (MAIL + b"Content-Type: text/plain; charset=x-none\r\n\r\ncaf\xe9", "café"),
    "no encoding at all": (MAIL + b"Content-Type: text/plain; charset=punycode\r\n\r\ncaf\xe9", "café"),
    "page": (
        MAIL + b"Content-Type: text/html; charset=koi8-r\r\n\r\n<p>" + "Привет".encode("koi8-r"),
        "Привет",
    ),
    "parts": (
        MAIL + b"Content-Type: multipart/mixed; boundary=X\r\n\r\n--X\r\nContent-Type: text/html\r\n\r\n<p>no\r\n"
        b"--X\r\nContent-Disposition: attachment\r\nContent-Type: text/plain\r\n\r\nno\r\n"
        b"--X\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\neWVz\r\n--X--\r\n",
        "yes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAILS)
def test_a_mail_is_its_subject_and_its_body(kind):
    raw, body = MAILS[kind]
    text, about = mail_text(raw, "auto")
    assert text.split("\n\n", 1) == [about["subject"], body]
    assert about["subject"].startswith("Grüße") or about["subject"].startswith("=?iso")
    assert about["from"] == "a@example.org"


def test_what_is_no_mail_says_so():
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (i, i) for i in range(3000))
    for raw in (b"", b"just text", MAIL + nested):
        with pytest.raises(DecodeError, match="not a mail"):
            mail_text(raw, "auto")


def test_a_page_is_what_it_shows(tmp_path):
    page = (
        '<html><head><meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"><title>Menü</title>'
        "<style>p {}</style></head><body><p>Caf\xe9 &amp;\n <b title='a > b'>Th\xe9</b></p>"
        "<script>x < 1</script><!-- <p>no --><ul><li>a<li>1 < 2</ul>"
    )
    write(tmp_path, {"a.html": page.encode("latin-1")})
    (sample,) = packed(tmp_path, "text")
    assert sample["text"] == "Menü\n\nCafé & Thé\n\na\n1 < 2"


@pytest.mark.parametrize(
    "part", ["<!--", "<a", "<", "&#", "<script>", "<!", "<?", "<a b='", "</", "<![", '<a "><a" "']
)
def test_a_page_of_what_is_never_closed_is_read_in_one_pass(part):
    begin = time.process_time()
    page_text("shown" + part * 50_000)
    assert time.process_time() - begin < 2  # the parser of the standard library takes minutes


TABLE = 'id;text;note\r\n1;"Zeile eins\r\nund ""zwei""";é\r\n2;zu;viele;Felder\r\n\r\n3;drei;\r\n'
TABLES = {
    "excel.csv": TABLE.encode("cp1252"), "unicode.csv": TABLE.replace(";", "\t").encode("utf-16"),
    "mark.csv": b"\xef\xbb\xbf" + TABLE.encode(), "sep.csv": b"sep=;\r\n" + TABLE.encode("cp1252"),
    "comma.csv": TABLE.replace(";", ",").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_spreadsheets_are_read(tmp_path, name):
    write(tmp_path, {name: TABLES[name]})
    samples = packed(tmp_path, "csv", "--encoding", "auto")
    assert [s["text"] for s in samples] == ['Zeile eins\nund "zwei"', "drei"]
    assert [s["json"] for s in samples] == [{"id": "1", "note": "é"}, {"id": "3", "note": ""}]
    assert [reason for _, reason in listed(tmp_path)] == ["not as many fields as the header: 4, not 3"]


def test_a_line_of_a_table_in_another_encoding_costs_its_row(tmp_path):
    write(
        tmp_path,
        {"a.csv": b'text,n\n"one\ntwo",1\n"caf\xe9\nx",2\nthree,3\n', "b.csv": b"other\nx\n", "c.csv": b""},
    )
    assert [s["text"] for s in packed(tmp_path, "csv")] == ["one\ntwo", "three"]
    assert [(name, reason[:9]) for name, reason in listed(tmp_path)] == [
        ("a.csv (line 4)", "not UTF-8"), ("b.csv (line 2)", "no such t"), ("c.csv", "empty"),
    ]  # fmt: skip


def test_text_keeps_its_folder_as_its_label_and_its_name(tmp_path, capsys):
    write(tmp_path, {f"{c}/{i}/{c}{i}.txt": f"{c} {i}".encode() for c in ("ham", "spam") for i in range(15)})
    write(tmp_path, {".cache/y.txt": b"y", "stray.txt": b"stray", "ham/a.pdf": b"%PDF"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("linked")
    (tmp_path / "in" / "eggs").symlink_to(tmp_path / "elsewhere")
    samples = packed(tmp_path, "text")
    told = capsys.readouterr().out
    classes = open_dataset(tmp_path / "out").manifest.about["classes"]
    assert classes == ["eggs", "ham", "spam"]
    assert len(samples) == 31
    for sample in samples:
        assert sample["label"] == classes.index(sample["json"]["file"].split("/")[0])
    assert "3 classes: eggs 1, ham 15, spam 15" in told
    assert dict(listed(tmp_path)) == {
        ".cache": "hidden", "a.pdf": ".pdf files: not read, unless named one by one",
        "stray.txt": "beside the class folders: has no class",
    }  # fmt: skip
    assert command("stats", tmp_path / "out") == 0
    assert "labels       eggs 1  ham 15  spam 15" in capsys.readouterr().out
    assert run_cli(lambda: main(["show", str(tmp_path / "out")])) == 0
    assert "] spam\n" in capsys.readouterr().out


def test_test_texts_take_the_numbers_of_the_training_texts(tmp_path):
    write(tmp_path, {"ham/a.txt": b"a", "news/b.txt": b"b", "spam/c.txt": b"c"})
    assert command("pack", "text", tmp_path / "in", tmp_path / "train") == 0
    (tmp_path / "in" / "ham" / "a.txt").unlink()
    samples = packed(tmp_path, "text", "--classes", tmp_path / "train")
    assert {s["text"]: s["label"] for s in samples} == {"b": 1, "c": 2}
    assert open_dataset(tmp_path / "out").manifest.about["classes"] == ["ham", "news", "spam"]


@pytest.mark.parametrize("files, message", [
    (["train/a.txt", "test/b.txt"], "look like splits, not classes"),
    (["one/a.txt", "two/b.txt", "stray.txt"], "2 files lie in 2 folders, 1 beside them"),
])  # fmt: skip
def test_what_the_folders_mean_is_asked_where_it_is_a_question(tmp_path, capsys, files, message):
    write(tmp_path, {name: name.encode() for name in files})
    assert command("pack", "text", tmp_path / "in", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert len(packed(tmp_path, "text", "--labels", "none")) == len(files)
    assert "label" not in open_dataset(tmp_path / "out").fields


@pytest.mark.parametrize("plan, ending, raw", [
    (plan_text, ".txt", b"small"), (plan_jsonl, ".jsonl", b'{"text": "small"}\n'), (plan_csv, ".csv", b"text\nsmall\n"),
])  # fmt: skip
def test_many_small_files_are_few_jobs_in_a_fixed_order(tmp_path, plan, ending, raw):
    write(tmp_path, {f"{i:04d}{ending}": raw for i in range(600)})
    named = sorted((tmp_path / "in").iterdir(), key=lambda path: hash(path.name) % 97)
    inside, by_name = plan([tmp_path / "in"], 1 << 20), plan(named, 1 << 20)
    assert len(inside.jobs) == len(by_name.jobs) == 2
    assert [Path(entry[0]).name for job in inside.jobs for entry in job] == sorted(
        path.name for path in named
    )
    assert [entry[0] for job in by_name.jobs for entry in job] == [str(path) for path in named]


def test_a_document_beyond_the_limit_is_listed_and_costs_no_memory(tmp_path, monkeypatch):
    for module in (encodings, text_files):
        monkeypatch.setattr(module, "LONGEST_DOCUMENT", 1000)
    long = b'{"text": "' + b"x" * 5000 + b'"}\n'
    write(tmp_path, {"a.jsonl": b'{"text": "a"}\n' + long + b'{"text": "b"}\n'})
    assert [s["text"] for s in packed(tmp_path, "jsonl")] == ["a", "b"]
    assert listed(tmp_path)[0][1].startswith("too long")


def test_a_torn_gzip_file_gives_what_is_before_the_tear(tmp_path):
    lines = os.urandom(30_000).hex().encode()
    raw = b"".join(b'{"text": "%d %s"}\n' % (i, lines[i : i + 100]) for i in range(1000))
    write(tmp_path, {"torn.jsonl.gz": gzip.compress(raw)[:-1000], "whole.jsonl": b'{"text": "whole"}'})
    texts = [s["text"] for s in packed(tmp_path, "jsonl")]
    assert 100 < len(texts) < 1000 and texts[-1] == "whole"
    assert listed(tmp_path)[0][0] == "torn.jsonl.gz"


def test_guessing_is_linear_in_what_is_read():
    text = "Ein Satz mit Umlauten: ä, ö, ü, ß, und noch einer. " * 100_000
    assert decode_bytes(text.encode("cp1252"), "auto") == (text, "cp1252")
    with pytest.raises(DecodeError):
        guess_encoding([np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()])
