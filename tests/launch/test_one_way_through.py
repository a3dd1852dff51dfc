"""Every command of every package, under both of its names, tells a user's mistake in one line."""

from __future__ import annotations

import importlib

import pytest

from data_tools.errors import run_cli
from launch.cli import main as masquerade

NOWHERE, UNWRITABLE = "/no/such/place", "/dev/null/x"
MISTAKES = [
    ("data", "pack images /no/such/place out", NOWHERE),
    ("data", "pack idx /no/such/place out", NOWHERE),
    ("data", "pack jsonl /no/such/place out", NOWHERE),
    ("data", "pack text /no/such/place out", NOWHERE),
    ("data", "pack csv /no/such/place out", NOWHERE),
    ("data", "pack text text.txt /dev/null/x/out --processes 1", UNWRITABLE),
    ("data", "tokenizer /no/such/place out", NOWHERE),
    ("data", "tokenizer text/ /dev/null/x/tokenizer --vocabulary 300", UNWRITABLE),
    ("data", "tokenize text/ out --tokenizer /no/such/place", NOWHERE),
    ("data", "index /no/such/place", NOWHERE),
    ("data", "verify /no/such/place", NOWHERE),
    ("data", "verify text/ --processes 1 --list /dev/null/x/list", UNWRITABLE),
    ("data", "stats sample:nothing", "no such sample"),
    ("data", "stats text/ --processes 1 --json /dev/null/x/a.json", UNWRITABLE),
    ("data", "show /no/such/place", NOWHERE),
    ("data", "show sample:digits_test --count 4 --output /dev/null/x/a.png", UNWRITABLE),
    ("data", "show sample:digits_test --count 4 --output sheet.docx", "end it in .png"),
    ("data", "split text/ /dev/null/x/train /dev/null/x/test --fraction 0.5", UNWRITABLE),
    ("pretrain", "mae_digit", "did you mean 'mae_digits'"),
    ("pretrain", "mae_digits encoder.num_attention_heads=5", "4 would do"),
    ("pretrain", "mae_digits --dry-run encoder.hidden_size=30 encoder.num_attention_heads=3", "divisible by 4"),
    ("pretrain", "mae_digits run_dir=/dev/null/x/run", UNWRITABLE),
    ("pretrain", "release /no/such/place", NOWHERE),
    ("pretrain", "report /no/such/place", NOWHERE),
    ("pretrain", "replay /no/such/place --step 1", NOWHERE),
    ("finetune", "image_classification encoder=/no/such/place", "data.train: missing"),
    ("finetune", "digits encoder=/no/such/place out=out", NOWHERE),
    ("finetune", "digits encoder=/no/such/place out=/dev/null/x/out", UNWRITABLE),
]  # fmt: skip
MODULES = {"data": "data_tools", "pretrain": "pretrain", "finetune": "finetune", "launch": "launch"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with `text.txt`, and `text/` that it was packed into."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("One sentence.\n\nAnother one.\n")
    arguments = [
        "pack",
        "text",
        folder / "text.txt",
        folder / "text",
        "--document",
        "paragraph",
        "--processes",
        "1",
    ]
    assert masquerade(["data", *map(str, arguments)]) == 0
    return folder


@pytest.mark.parametrize("name", ["masquerade", "module"])
@pytest.mark.parametrize(("command", "arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(text, monkeypatch, capfd, name, command, arguments, message):
    monkeypatch.chdir(text)
    assert call(name, command, arguments.split()) == 2
    lines = [
        line for line in capfd.readouterr().err.splitlines() if not line.startswith(("stats:", "verify:"))
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def call(name, command, arguments):
    if name == "masquerade":
        return masquerade([command, *arguments])
    return importlib.import_module(f"{MODULES[command]}.__main__").main(arguments)


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, capfd):
    monkeypatch.setenv("MASQUERADE_CACHE", UNWRITABLE)
    assert masquerade(["data", "stats", "sample:digits_test"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: /dev/null/x/samples-v1: the cache cannot be used (not a directory)")
    assert "MASQUERADE_CACHE" in line


def test_an_unknown_command_is_answered_with_the_nearest(capfd):
    assert masquerade(["pretrian", "mae_digits"]) == 2
    assert "did you mean 'pretrain'" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["masquerade", "module"])
@pytest.mark.parametrize(
    ("command", "inner"),
    [("data", "_parser"), ("pretrain", "pretrain"), ("finetune", "finetune"), ("launch", "launch")],
)
def test_ctrl_c_ends_every_command_with_status_130(monkeypatch, capfd, name, command, inner):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{MODULES[command]}.__main__.{inner}", interrupt)
    assert call(name, command, ["something"]) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_a_full_disk_is_one_line(capsys):
    def write():
        with open("/dev/full", "w") as file:  # noqa: PTH123 - the device that is always full
            file.write("x" * 100_000)

    assert run_cli(write) == 2
    assert capsys.readouterr().err == "error: no space left on device; make room, or choose another disk\n"


def test_what_is_not_the_users_mistake_shows_where_it_happened():
    with pytest.raises(FileNotFoundError):
        run_cli(lambda: open("/no/such/file").close())  # noqa: PTH123
