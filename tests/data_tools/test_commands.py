"""The commands, from a user's side: what they write, what they say, what they refuse."""

import gzip
import io
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import png, write_images, write_tokens

from data_tools.__main__ import main
from data_tools.dataset.open import open_dataset
from data_tools.errors import run_cli
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream


def command(*words) -> int:
    return run_cli(lambda: main([str(word) for word in words]))


@pytest.fixture
def fails(capsys):
    """Run a command that must fail in one line, and return that line."""

    def run(*words) -> str:
        assert command(*words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


def image_folder(folder: Path, classes=("cat", "dog"), each: int = 6) -> Path:
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            (folder / name / f"{i}.v1.png").write_bytes(png(100 * c + i))
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    code = {"uint8": 8}[array.dtype.name]
    return (
        bytes([0, 0, code, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def test_pack_labelled_images(tmp_path, capsys):
    out = tmp_path / "out"
    assert command("pack", "images", image_folder(tmp_path / "in"), out) == 0
    dataset = open_dataset(out)
    assert dataset.manifest.about["classes"] == ["cat", "dog"]
    samples = {s["__key__"]: s for s in dataset}
    assert len(samples) == 12
    assert samples["dog/3_v1"]["label"] == 1
    assert np.array_equal(samples["dog/3_v1"]["image"][:, :, 0], np.asarray(Image.open(io.BytesIO(png(103)))))
    assert sorted(p.name for p in out.iterdir()) == ["000000.tar", "000000.tar.sidecar", "manifest.json"]
    assert "12 samples in 1 shards" in capsys.readouterr().out


def test_pack_unlabelled_images_into_many_shards(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(noise.integers(0, 256, (400, 500, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    assert command("pack", "images", folder, tmp_path / "out", "--shard-mb", 1, "--processes", 1) == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.fields == {"image": "png"}
    assert len(dataset.manifest.urls) == 5


def test_corrupt_images_are_counted_listed_and_skipped(tmp_path, capsys):
    folder = image_folder(tmp_path / "in")
    (folder / "cat" / "bad.png").write_bytes(png(1)[:40])
    (folder / "dog" / "bad.jpg").write_bytes(b"not a picture")
    assert command("pack", "images", folder, tmp_path / "out") == 0
    assert "skipped 2 unusable inputs" in capsys.readouterr().out
    listed = [
        json.loads(line)["name"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    assert sorted(Path(name).name for name in listed) == ["bad.jpg", "bad.png"]
    assert len(open_dataset(tmp_path / "out")) == 12


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pack_idx(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    for name, array in (("images", images), ("labels", labels)):
        data = idx_bytes(array)
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    out = tmp_path / "out"
    assert (
        command("pack", "idx", tmp_path / f"images{suffix}", out, "--labels", tmp_path / f"labels{suffix}")
        == 0
    )
    samples = list(open_dataset(out))
    assert [s["label"] for s in samples] == list(range(7))
    assert all(np.array_equal(s["image"][:, :, 0], image) for s, image in zip(samples, images, strict=True))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_pack_jsonl(tmp_path, suffix, capsys):
    lines = [
        json.dumps({"body": f"text {i} é" * (i % 50 + 1), "year": i}, ensure_ascii=False) for i in range(500)
    ]
    lines[3] = "{broken"
    data = "\n".join(lines).encode()
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert command("pack", "jsonl", path, tmp_path / "out", "--text-field", "body") == 0
    assert "skipped 1" in capsys.readouterr().out
    samples = list(open_dataset(tmp_path / "out"))
    assert [s["json"]["year"] for s in samples] == [i for i in range(500) if i != 3]
    assert samples[10]["text"] == "text 11 é" * 12


def test_jsonl_cut_into_byte_ranges_loses_no_line(tmp_path):
    from data_tools.commands.pack.text import plan_jsonl

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * (i * 7 % 40)}) + "\n" for i in range(200)))
    for step in (17, 100, 1000, 10**6):
        source = plan_jsonl([path], step)
        texts = [item.members["txt"] for job in source.jobs for item in source.read(job)]
        assert texts == [b"x" * (i * 7 % 40) for i in range(200)]


@pytest.mark.parametrize("document, expected", [("file", 2), ("paragraph", 3), ("line", 4)])
def test_pack_text(tmp_path, document, expected):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "in" / "b.txt").write_text("\n\nvier\n")
    assert command("pack", "text", tmp_path / "in", tmp_path / "out", "--document", document) == 0
    samples = list(open_dataset(tmp_path / "out"))
    assert len(samples) == expected
    assert samples[-1]["text"] == "vier"
    assert samples[-1]["json"] == {"file": "b.txt"}


def test_text_that_is_not_utf8_says_what_to_do_and_leaves_nothing(tmp_path, fails):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes("café".encode("latin-1"))
    error = fails("pack", "text", tmp_path / "in", tmp_path / "out")
    assert "a.txt: not UTF-8" in error and "--encoding auto" in error
    assert not list((tmp_path / "out").glob("*"))
    assert command("pack", "text", tmp_path / "in", tmp_path / "out", "--encoding", "latin-1") == 0
    assert open_dataset(tmp_path / "out")[0]["text"] == "café"


@pytest.mark.parametrize(
    "words, message",
    [
        (["pack", "images", "nowhere", "out"], "no such folder"),
        (["pack", "images", "empty", "out"], "holds no images"),
        (["pack", "images", "corrupt", "out"], "nothing could be packed"),
        (["pack", "images", "images", "full"], "is not empty"),
        (["pack", "images", "images", "packed"], "already holds a packed data set"),
        (["pack", "images", "images", "file"], "is a file"),
        (["pack", "images", "images", "out", "--shard", "3/2"], "must be k/n"),
        (["pack", "images", "flat", "out", "--labels", "folder"], "outside of class folders"),
        (["pack", "text", "empty", "out"], "holds no .txt"),
        (["pack", "text", "nowhere", "out"], "no such file or folder"),
        (["pack", "text", "file", "out", "--encoding", "utf-9"], "no such encoding"),
        (["pack", "jsonl", "latin.jsonl", "out"], "not UTF-8"),
        (["pack", "jsonl", "empty.jsonl", "out"], "empty"),
        (["pack", "idx", "file", "out"], "not a readable IDX file"),
        (["pack", "idx", "short.sidecar", "out"], "do not fit the shape"),
        (["index", "nowhere"], "no such folder"),
        (["index", "empty"], "no .tar files"),
        (["index", "html"], "not a usable tar"),
        (["verify", "empty"], "no manifest"),
        (["stats", "nowhere"], "no such data set"),
        (["show", "empty"], "no such data set"),
        (["tokenizer", "packed", "out"], "no text"),
        (["tokenizer", "sample:sotu", "out", "--vocabulary", "99"], "at least 262"),
        (["tokenizer", "sample:sotu", "full"], "is not empty"),
        (["tokenize", "sample:sotu", "out", "--tokenizer", "empty"], "no tokenizer.json"),
        (["tokenize", "packed", "out", "--tokenizer", "empty"], "no text to tokenize"),
        (["split", "packed", "out", "out2", "--fraction", "1.5"], "between 0 and 1"),
        (["split", "packed", "full", "out2"], "is not empty"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_half_written(tmp_path, monkeypatch, fails, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "flat", "corrupt", "full", "html"):
        Path(name).mkdir()
    Path("flat/a.png").write_bytes(png(0))
    Path("corrupt/a.png").write_bytes(b"no")
    Path("full/other").write_text("x")
    Path("file").write_text("hello")
    Path("html/a.tar").write_text("<!DOCTYPE html>" * 100)
    Path("latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    Path("torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-12])
    Path("empty.jsonl").touch()
    Path("short.sidecar").write_bytes(idx_bytes(np.zeros((3, 4, 4), np.uint8))[:-5])
    image_folder(Path("images"))
    write_images(Path("packed"), 4)
    assert message in fails(*words)
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


def test_pack_goes_on_after_sigkill(tmp_path):
    """Killed in the middle, started again: the finished jobs are not done twice, the result is that of one run."""
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(noise.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    words = ["pack", "images", str(folder), str(tmp_path / "out"), "--shard-mb", "1", "--processes", "1"]
    process = subprocess.Popen([sys.executable, "-m", "data_tools", *words])
    deadline = time.monotonic() + 60
    while (
        not (receipts := list((tmp_path / "out").glob(".pack/*/receipts/*.json")))
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in receipts}
    assert kept
    assert command(*words) == 0
    words[3] = str(tmp_path / "reference")
    assert command(*words) == 0
    resumed, reference = open_dataset(tmp_path / "out"), open_dataset(tmp_path / "reference")
    assert resumed.fingerprint == reference.fingerprint
    assert len(resumed) == 40


def test_parts_on_several_machines_give_the_manifest_of_one(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(noise.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    for part in ("2/3", "0/3", "1/3"):
        assert not (tmp_path / "out" / "manifest.json").exists()
        assert (
            command(
                "pack", "images", folder, tmp_path / "out", "--shard-mb", 1, "--processes", 1, "--shard", part
            )
            == 0
        )
    assert command("pack", "images", folder, tmp_path / "one", "--shard-mb", 1) == 0
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tmp_path / "one").fingerprint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in.jsonl").write_text(
        "".join(
            json.dumps({"text": f"The year {i} was a good year. " * (i % 9 + 1), "i": i}) + "\n"
            for i in range(300)
        )
    )
    assert command("pack", "jsonl", folder / "in.jsonl", folder / "text") == 0
    assert (
        command("tokenizer", folder / "text", folder / "tokenizer", "--vocabulary", 300, "--length", 64) == 0
    )
    return folder


def test_tokenizer_opens_in_transformers(corpus):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(corpus / "tokenizer")
    assert tokenizer.model_max_length == 64
    roles = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    assert roles == (0, 1, 2, 3)
    assert tokenizer.eos_token == "<|endoftext|>"
    text = "The year 7 was naïve. 你好"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("ends, first, last", [("end", None, 5), ("cls-sep", 1, 2), ("none", None, None)])
def test_tokenize_round_trips_and_keeps_lengths(corpus, tmp_path, ends, first, last):
    from data_tools.tokenizer import load_tokenizer

    words = ["tokenize", corpus / "text", tmp_path, "--tokenizer", corpus / "tokenizer", "--ends", ends]
    assert command(*words, "--keep", "json") == 0
    dataset, texts = open_dataset(tmp_path), open_dataset(corpus / "text")
    tokenizer = load_tokenizer(tmp_path / dataset.manifest.about["tokenizer"])
    assert dataset.lengths.tolist() == [len(s["tokens"]) for s in dataset]
    for i in (0, 57, 299):
        tokens = dataset[i]["tokens"]
        assert tokens.dtype == np.uint16
        assert tokenizer.decode(tokens.tolist(), skip_special_tokens=True) == texts[i]["text"]
        assert first is None or tokens[0] == first
        assert last is None or tokens[-1] == last
        assert dataset[i]["json"] == {"i": i}
    assert PackedStream(Stream(dataset), 64).efficiency > 0.9


def test_split_is_by_key_complete_and_copies_nothing(tmp_path):
    write_tokens(tmp_path / "all", list(range(1, 201)))
    assert command("split", tmp_path / "all", tmp_path / "train", tmp_path / "test", "--fraction", 0.25) == 0
    train, test = open_dataset(tmp_path / "train"), open_dataset(tmp_path / "test")
    everything = open_dataset(tmp_path / "all")
    assert sorted([*train.keys(), *test.keys()]) == sorted(everything.keys())
    assert 25 < len(test) < 75
    assert test.lengths.tolist() == [len(s["tokens"]) for s in test]
    assert not list((tmp_path / "train").glob("*.tar"))
    write_tokens(tmp_path / "more", list(range(1, 301)))
    assert command("split", tmp_path / "more", tmp_path / "a", tmp_path / "b", "--fraction", 0.25) == 0
    assert set(test.keys()) <= set(open_dataset(tmp_path / "b").keys())


def test_stats_count_labels_channels_and_duplicates(tmp_path, capsys):
    folder = image_folder(tmp_path / "in")
    (folder / "dog" / "again.png").write_bytes(png(0))
    assert command("pack", "images", folder, tmp_path / "out") == 0
    assert command("stats", tmp_path / "out", "--json", tmp_path / "stats.json") == 0
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["samples"] == 13
    assert stats["labels"] == {"cat": 6, "dog": 7}
    assert stats["duplicates"]["count"] == 1
    assert sorted(stats["duplicates"]["groups"][0]) == ["cat/0_v1", "dog/again"]
    pixels = np.concatenate([s["image"].reshape(-1) for s in open_dataset(tmp_path / "out")]) / 255
    assert stats["channels"]["1"]["mean"][0] == pytest.approx(pixels.mean())
    assert stats["channels"]["1"]["std"][0] == pytest.approx(pixels.std())
    assert "duplicates   count 1" in capsys.readouterr().out


def test_show_draws_a_sheet_or_prints_text(tmp_path, capsys):
    assert command("show", "sample:digits", "--output", tmp_path / "d.png", "--count", 12) == 0
    sheet = np.asarray(Image.open(tmp_path / "d.png").convert("L"))
    assert sheet.shape[0] > 300 and sheet.shape[1] > 400
    assert 0.02 < (sheet > 128).mean() < 0.6  # white paper between the tiles, strokes in them
    assert command("show", "sample:sotu", "--count", 3) == 0
    assert capsys.readouterr().out.count("\n  ") == 3


def test_verify_of_sound_data_finds_nothing_and_keeps_the_order(tmp_path, capsys):
    folder = write_images(tmp_path, 12)
    before = open_dataset(folder).fingerprint
    assert command("verify", folder) == 0
    assert open_dataset(folder).fingerprint == before
    assert not (folder / ".verify").exists()


def test_every_command_has_help_with_an_example(capsys):
    names = [
        "pack",
        "pack images",
        "pack idx",
        "pack jsonl",
        "pack text",
        "pack csv",
        "tokenizer",
        "tokenize",
        "index",
        "verify",
    ]
    for name in ["", *names, "stats", "show", "split", "select", "dedup", "merge", "append"]:
        with pytest.raises(SystemExit) as stop:
            main([*name.split(), "--help"])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert f"example: python -m data_tools {name}".strip() in text


def test_ctrl_c_is_one_line():
    code = "import sys; from data_tools.errors import run_cli; import time; sys.exit(run_cli(lambda: time.sleep(60)))"
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job is deaf to it
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,  # noqa: PLW1509
    )
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (130, "interrupted\n")


@pytest.mark.slow
def test_pack_on_a_dask_cluster_gives_the_same_data(tmp_path, fails):
    distributed = pytest.importorskip("distributed")
    folder = image_folder(tmp_path / "in", each=30)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert command("pack", "images", folder, tmp_path / "out", "--dask", cluster.scheduler_address) == 0
    assert command("pack", "images", folder, tmp_path / "one", "--processes", 1) == 0
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tmp_path / "one").fingerprint


def test_dask_without_a_cluster_is_one_line(tmp_path, fails):
    pytest.importorskip("distributed")
    assert "no cluster answers" in fails(
        "pack", "images", image_folder(tmp_path / "in"), tmp_path / "o", "--dask", "nonsense"
    )
