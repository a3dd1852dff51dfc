"""`tokenize` keeps every token of a text, whatever a tokenizer.json says; `tokenizer` is linear in any text."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_tools import open_dataset, tokenizer
from data_tools.__main__ import main
from data_tools.errors import run_cli
from data_tools.tokenizer import (
    cut_text,
    cut_words,
    encode_texts,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from tests.faults.full_disk import FULL, on_a_small_disk

TEXTS = [" ".join(f"word{i} number {j}" for j in range(n)) for i, n in enumerate((3, 40, 400))] + [
    "",
    "[MASK] it",
]


def command(*words: object) -> int:
    return run_cli(lambda: main([str(word) for word in (*words, "--processes", 1)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`tok`, a tokenizer, and `sh`, texts packed."""
    folder = tmp_path_factory.mktemp("tokens")
    save_tokenizer(train_tokenizer(TEXTS * 3, 320), folder / "tok", length=64)
    lines = [json.dumps({"text": text}) for text in [*TEXTS, "one <|endoftext|> two"]]
    (folder / "in.jsonl").write_text("\n".join(lines))
    assert command("pack", "jsonl", folder / "in.jsonl", folder / "sh") == 0
    return folder


def test_truncation_and_padding_of_the_last_call_are_not_obeyed(folder, tmp_path):
    shutil.copytree(folder / "tok", tmp_path / "tok")
    used = Tokenizer.from_file(str(tmp_path / "tok" / "tokenizer.json"))
    used.enable_truncation(16)
    used.enable_padding(length=64)
    used.save(str(tmp_path / "tok" / "tokenizer.json"))
    for name in (folder / "tok", tmp_path / "tok"):
        assert (
            command("tokenize", folder / "sh", tmp_path / f"of_{name.parent.name}", "--tokenizer", name) == 0
        )
    clean, saved = (open_dataset(tmp_path / f"of_{parent.name}") for parent in (folder, tmp_path))
    assert clean.lengths is not None and clean.lengths.max() > 1000
    assert [s["tokens"].tolist() for s in saved] == [s["tokens"].tolist() for s in clean]


def test_the_name_of_a_special_token_in_a_text_is_text(folder):
    loaded = load_tokenizer(folder / "tok")
    for text in ("one <|endoftext|> two", "[PAD][MASK]"):
        (ids,) = encode_texts(loaded, [text])
        assert ids.min() > 5  # the special tokens are 0 to 5
        assert loaded.decode(ids.tolist()) == text


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_long_texts_are_encoded_in_pieces_with_the_tokens_of_the_whole(folder, monkeypatch, piece):
    monkeypatch.setattr(cut_text, "__defaults__", (piece,))
    monkeypatch.setattr(tokenizer, "LONGEST_PIECE", piece)
    loaded = load_tokenizer(folder / "tok")
    whole = [loaded.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [ids.tolist() for ids in encode_texts(loaded, TEXTS)] == whole


def test_nothing_is_lost_where_a_text_is_cut():
    for text in ("", "a", "x" * 5000, " " * 5000, "word " * 1000, "a" * 999 + " " + "b" * 2500 + " c"):
        assert "".join(cut_text(text, 100)) == text and max(map(len, cut_text(text, 100))) <= 100
        pieces = list(cut_words(text))
        assert "".join(pieces) == text
        assert (
            max(len(word) for piece in pieces for word in (piece.split() or [piece]))
            <= tokenizer.LONGEST_WORD
        )


def test_training_on_a_text_without_a_space_is_linear():
    rng = np.random.default_rng(0)
    seconds = []
    for size in (100_000, 400_000):
        text = rng.choice(np.frombuffer(b"abcdefgh", dtype=np.uint8), size).tobytes().decode()
        begin = time.process_time()
        train_tokenizer([text], 400)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 10 * seconds[0]  # 16 times where it is quadratic


def test_ids_may_have_gaps_and_lie_beyond_the_number_of_tokens(folder, tmp_path):
    values = json.loads((folder / "tok" / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] = 70_000
    save = tmp_path / "tok"
    shutil.copytree(folder / "tok", save)
    (save / "tokenizer.json").write_text(json.dumps(values))
    text = load_tokenizer(save).decode([70_000])
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": text}))
    assert command("pack", "jsonl", tmp_path / "in.jsonl", tmp_path / "sh") == 0
    assert command("tokenize", tmp_path / "sh", tmp_path / "out", "--tokenizer", save) == 0
    assert open_dataset(tmp_path / "out")[0]["tokens"].tolist() == [70_000, 5]


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.txt").write_text("line\n" * 100_000)
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"text": "x{i}"}}\n' for i in range(8000)))
    assert command("pack", "jsonl", tmp_path / "lines.jsonl", tmp_path / "sh") == 0
    small = tmp_path / "small"
    small.mkdir()
    commands = [
        ["pack", "text", tmp_path / "in", small / "a", "--processes", 1],
        ["tokenize", tmp_path / "sh", small / "a", "--tokenizer", folder / "tok", "--processes", 1],
        ["split", tmp_path / "sh", small / "a", small / "b", "--fraction", 0.3],
        ["show", "sample:digits_test", "--output", small / "a.png"],
    ]
    script = f"""
import sys
from pathlib import Path
from data_tools.__main__ import main
for words in {[[str(word) for word in words] for words in commands]}:
    print(main(words), [str(path) for path in Path({str(small)!r}).iterdir()])
"""
    result = on_a_small_disk(small, "16k", [sys.executable, "-c", script])
    told = result.stderr.splitlines()
    assert [line for line in result.stdout.splitlines() if line.startswith("2")] == ["2 []"] * 4, result
    assert len(told) == 4 and all(FULL.search(line) for line in told), told
    assert all(Path(str(FULL.search(line)["mount"])) == small for line in told)
