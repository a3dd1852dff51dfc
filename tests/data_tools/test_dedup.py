"""dedup: which copies are found, which of them is kept, what is said of it."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from small_data import npy

from data_tools.__main__ import main
from data_tools.commands.near_copies import compare_texts, find_near, hash_words, minhash, text_bands
from data_tools.dataset.open import open_dataset
from data_tools.errors import run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset

WORDS = np.array([f"word{i}" for i in range(500)])


def encoded(pixels, kind="PNG", **how) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def picture(number: int) -> np.ndarray:
    """Smooth colours and an edge, (96, 120, 3)."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:96, 0:120] / 60
    waves = [np.sin(x * draw.uniform(1, 6) + y * draw.uniform(1, 6) + draw.uniform(0, 6)) for _ in range(3)]
    pixels = np.stack(waves, -1) * 60 + 128
    pixels[draw.integers(20, 70) :, : draw.integers(20, 100)] += 60
    return pixels.clip(0, 255).astype(np.uint8)


def text(number: int) -> list[str]:
    return np.random.default_rng(number).choice(WORDS, 120).tolist()


def write(folder, samples, per_shard=7):
    """(extension, bytes, label) each, under the keys 000, 001 …"""
    writer = ShardWriter(folder, max_samples=per_shard)
    for i, (extension, data, label) in enumerate(samples):
        writer.write(f"{i:03d}", {extension: data, "cls": str(label).encode()})
    finish_dataset(writer)
    return folder


def dedup(data, out, *more):
    assert run_cli(lambda: main(["dedup", str(data), str(out), *map(str, more)])) == 0
    lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    return list(open_dataset(out).keys()), {line["sample"]: (line["kept"], line["copy"]) for line in lines}


def test_exact_copies_go_whatever_their_labels_and_the_first_stays(tmp_path, capsys):
    contents = [b"a", b"b", b"a", b"c", b"b", b"b", b"A", b"a "]
    data = write(tmp_path / "data", [("txt", c, i) for i, c in enumerate(contents)], per_shard=3)
    kept, dropped = dedup(data, tmp_path / "out")
    assert kept == ["000", "001", "003", "006", "007"]
    assert dropped == {"002": ("000", "exact"), "004": ("001", "exact"), "005": ("001", "exact")}
    assert "dropped 3 exact copies; listed in" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.tar"))
    assert list(dedup(tmp_path / "out", tmp_path / "again")[1]) == []


def test_near_pictures_are_those_resized_or_compressed_anew(tmp_path):
    own = [("png", encoded(picture(i)), i) for i in range(30)]
    changed = [
        ("jpg", encoded(picture(3), "JPEG", quality=60), 0),
        ("png", encoded(np.asarray(Image.fromarray(picture(4)).resize((60, 48)))), 0),
        ("webp", encoded(picture(5), "WEBP", quality=70), 0),
        ("png", encoded(picture(6)), 0),
        (
            "png",
            encoded((picture(7).astype(np.uint16) * 257)[..., 1], "PNG"),
            0,
        ),  # 16 bits, one channel: another
        ("png", encoded(255 - picture(8)), 0),
    ]
    blank = [("png", encoded(np.full((40, 40), grey, np.uint8)), 0) for grey in (250, 251, 20)]
    data = write(tmp_path / "data", own + changed + blank)
    kept, dropped = dedup(data, tmp_path / "out", "--near", "image")
    assert dropped == {
        "030": ("003", "near"), "031": ("004", "near"), "032": ("005", "near"), "033": ("006", "exact"),
        "037": ("036", "near"),
    }  # fmt: skip
    assert len(kept) == 39 - 5
    assert open_dataset(tmp_path / "out").manifest.about["chosen"]["similarity"] == 0.9


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_near_texts_share_most_of_their_shingles(tmp_path, kind):
    few = text(1)
    few[60] = "other"
    many = [word if i % 9 else "other" for i, word in enumerate(text(2))]
    texts = [text(i) for i in range(25)] + [few, many, [*text(3), "more"], text(4), [], []]

    def member(words):
        if kind == "text":
            return "txt", " ".join(words).encode()
        return "tokens.npy", npy(np.array([hash_words(word)[0] % 50_000 for word in words], dtype=np.uint32))

    data = write(tmp_path / "data", [(*member(words), 0) for words in texts])
    _, dropped = dedup(data, tmp_path / "out", "--near", "text")
    assert dropped == {
        "025": ("001", "near"), "027": ("003", "near"), "028": ("004", "exact"), "030": ("029", "exact"),
    }  # fmt: skip


def test_what_is_a_copy_of_a_near_copy_goes_too(tmp_path):
    few = text(1)
    few[60] = "other"
    texts = [" ".join(words).encode() for words in (text(0), text(1), few, few)]
    _, dropped = dedup(
        write(tmp_path / "data", [("txt", t, 0) for t in texts]), tmp_path / "out", "--near", "text"
    )
    assert {sample: kept for sample, (kept, _) in dropped.items()} == {"002": "001", "003": "001"}


def test_words_are_found_in_any_script():
    spaced, chinese = hash_words("The  people, THE people!"), hash_words("人民的 government 人民")
    assert spaced[0] == spaced[2] and spaced[1] == spaced[3] and len(spaced) == 4
    assert len(chinese) == 6 and chinese[0] == chinese[4]
    assert minhash(hash_words(" … ")) is None


def test_near_copies_are_found_among_many_that_share_nothing():
    draw = np.random.default_rng(0)
    words = [draw.integers(0, 2**63, 200).astype(np.uint64) for _ in range(500)]
    words += [
        np.concatenate([one[:180], draw.integers(0, 2**63, 5).astype(np.uint64)]) for one in words[:200]
    ]
    signatures = np.stack([minhash(one) for one in words])
    original, similarity = find_near(signatures, text_bands(signatures), compare_texts, 0.8)
    found = np.flatnonzero(original != np.arange(700))
    assert len(found) > 190 and (original[found] == found - 500).all()  # a Jaccard index of 0.87
    assert (similarity[found] >= 0.8).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--near", "image"], "--near image: samples have label, text, and no image"),
        (["--near", "text", "--similarity", "0.2"], "between 0.7 and 1"),
    ],
)
def test_what_cannot_be_compared_is_said_and_leaves_nothing(tmp_path, capsys, words, message):
    data = write(tmp_path / "data", [("txt", b"a", 0)])
    assert run_cli(lambda: main(["dedup", str(data), str(tmp_path / "out"), *words])) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
