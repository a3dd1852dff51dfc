"""`pretrain embed`: the features of every sample once, in the data set's order, the same bytes however it was run."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_run import make_run, make_text_run

from data_tools import open_dataset
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.__main__ import main
from pretrain.objectives.base import stack
from pretrain.release.release import load_run_encoder, release_run
from tests.data_tools.small_data import png


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """50 pictures in shards of 20; every third has no label; the bytes of number 7 are no picture."""
    writer = ShardWriter(tmp_path_factory.mktemp("data"), max_samples=20)
    for number in range(50):
        about = {"number": number, "name": f"n{number % 4}", "half": number / 2}
        if number % 3:
            about["kind"] = number % 5
        picture = b"no picture" if number == 7 else png(number, 28)
        writer.write(f"{number:03d}", {"png": picture, "json": json.dumps(about).encode()})
    finish_dataset(writer)
    return writer.folder


def embed(run, data, out, *options, ranks=1, monkeypatch=None):
    for rank in range(ranks):
        if ranks > 1:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
        assert main(["embed", str(run), f"data={data}", "--out", str(out), *options]) == 0
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def expected(run, data):
    """Pooled features of each sample on its own, and tokens."""
    objective, found = load_run_encoder(run).objective, {}
    dataset = open_dataset(data)
    for number in range(len(dataset)):
        if number != 7:
            with torch.no_grad():
                found[number] = objective.encode(stack([objective.view(dataset[number])]))
    return found


LABELS = [
    "--labels",
    "json.number,json.kind,json.name,json.half",
    "--part-samples",
    "16",
    "--batch-size",
    "5",
]


def test_every_format_holds_keys_labels_and_features_in_order(run, data, tmp_path, capsys):
    told = expected(run, data)
    parquet = embed(run, data, tmp_path / "a", *LABELS)
    assert "7" in capsys.readouterr().err  # left out, and named
    tables = [pq.read_table(io.BytesIO(raw)) for raw in parquet.values()]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["index"] for row in rows] == list(told)
    assert [row["key"] for row in rows] == [f"{number:03d}" for number in told]
    assert [row["json.kind"] for row in rows] == [n % 5 if n % 3 else None for n in told]
    assert [row["json.half"] for row in rows] == [n / 2 for n in told]
    found = np.array([row["embedding"] for row in rows])
    np.testing.assert_allclose(found, np.stack([e.pooled[0].numpy() for e in told.values()]), atol=1e-5)

    arrays = [
        np.load(io.BytesIO(raw))
        for raw in embed(run, data, tmp_path / "b", *LABELS, "--format", "npz").values()
    ]
    assert np.array_equal(np.concatenate([a["embedding"] for a in arrays]), found.astype(np.float32))
    assert np.concatenate([a["json.kind.valid"] for a in arrays]).tolist() == [n % 3 > 0 for n in told]
    assert np.concatenate([a["json.name"] for a in arrays]).tolist() == [f"n{n % 4}" for n in told]

    lines = embed(run, data, tmp_path / "c", *LABELS, "--format", "csv").values()
    table = [row for raw in lines for row in csv.DictReader(io.StringIO(raw.decode()))]
    assert [row["json.kind"] for row in table] == [str(n % 5) if n % 3 else "" for n in told]
    numbers = np.array([[row[f"e{i}"] for i in range(found.shape[1])] for row in table], np.float32)
    assert np.array_equal(numbers, found.astype(np.float32))

    arrays = [np.load(io.BytesIO(raw)) for raw in embed(
        run, data, tmp_path / "d", *LABELS, "--format", "npz", "--features", "tokens").values()]  # fmt: skip
    split = [part for a in arrays for part in np.split(a["tokens"], a["offsets"][1:-1])]
    for tokens, encoded in zip(split, told.values(), strict=True):
        np.testing.assert_allclose(tokens, encoded.tokens[0].numpy(), atol=1e-5)
    table = pq.read_table(io.BytesIO(next(iter(
        embed(run, data, tmp_path / "e", *LABELS, "--features", "tokens").values()))))  # fmt: skip
    assert np.array_equal(np.array(table["tokens"][1].as_py(), np.float32), split[1])


def test_ranks_interruptions_and_formats_of_encoders_give_the_same_bytes(run, data, tmp_path, monkeypatch):
    options = [*LABELS, "--format", "npz"]
    whole = embed(run, data, tmp_path / "one", *options)
    assert embed(run, data, tmp_path / "two", *options, ranks=3, monkeypatch=monkeypatch) == whole
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "one" / "part-000001.npz").unlink()
    kept = (tmp_path / "one" / "part-000002.npz").stat().st_mtime_ns
    assert embed(run, data, tmp_path / "one", *options) == whole
    assert (tmp_path / "one" / "part-000002.npz").stat().st_mtime_ns == kept
    release = release_run(run, tmp_path / "release")
    assert embed(release, data, tmp_path / "released", *options) == whole


def test_text_has_as_many_tokens_as_it_has(tmp_path):
    make_text_run(tmp_path / "run", "bert", "mlm")
    writer = ShardWriter(tmp_path / "data", max_samples=20)
    texts = ["the states", "the union of the states shall be strong and wise"]
    for number, text in enumerate(texts):
        writer.write(str(number), {"txt": text.encode()})
    finish_dataset(writer)
    raw = embed(
        tmp_path / "run", tmp_path / "data", tmp_path / "out", "--format", "npz", "--features", "tokens"
    )
    arrays = np.load(io.BytesIO(raw["part-000000.npz"]))
    objective = load_run_encoder(tmp_path / "run").objective
    lengths = [len(objective.encoder.tokens_of({"text": text, "__key__": ""}, 64)) for text in texts]
    assert np.diff(arrays["offsets"]).tolist() == lengths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "json.colour"], "none of the first 50 samples"),
        (["--labels", "json"], "name a single value"),
        (["--part-samples", "0"], "at least 1"),
        (["--format", "csv", "--features", "tokens"], "take npz or parquet"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(run, data, tmp_path, capsys, options, message):
    assert main(["embed", str(run), f"data={data}", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_embeddings_is_refused(run, data, tmp_path, capsys):
    embed(run, data, tmp_path / "out", *LABELS)
    command = [
        "embed",
        str(run),
        f"data={data}",
        "--out",
        str(tmp_path / "out"),
        *LABELS,
        "--batch-size",
        "6",
    ]
    assert main(command) == 2
    assert "other batch_size" in capsys.readouterr().err
