"""Every command does to data elsewhere what it does to their copy here, with the settings that ``--storage`` gives."""

import argparse
import json
import os
import pickle
import shutil

import pytest
from small_data import png
from store_server import store_server

from data_tools.__main__ import main
from data_tools.commands.cli import add_storage, fetching_of
from data_tools.commands.tokenize import plan_tokenize
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.samples import sample_folder
from data_tools.storage.objects import StorageOptions
from tests.s3_server import s3_server

PARTS = ("train", "test", "most", "few", "some", "unique", "merged", "all")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))


def data(*words) -> int:
    return main([str(word) for word in words])


def read_storage(*words):
    parser = argparse.ArgumentParser()
    add_storage(parser)
    return fetching_of(parser.parse_args([part for word in words for part in ("--storage", word)]))


def test_storage_takes_the_keys_of_a_recipe(tmp_path):
    (tmp_path / "own.yaml").write_text("data: {path: a, storage: {options: {profile: me}, cache_bytes: 7}}")
    found = read_storage(
        tmp_path.joinpath("own.yaml").as_posix(), "options.headers={X-Own: own}", "cache_bytes=1000",
        f"cache_folder={tmp_path}", "patience=7",
    )  # fmt: skip
    assert (found.cache, found.cache_bytes, found.retry.patience) == (tmp_path, 1000, 7)
    assert found.retry.storage == StorageOptions(profile="me", headers={"X-Own": "own"})
    (tmp_path / "keys.yaml").write_text("prefetch_bytes: 9")
    assert read_storage(tmp_path.joinpath("keys.yaml").as_posix()).prefetch_bytes == 9


@pytest.mark.parametrize(
    "word, message",
    [
        (
            "endpoint_url=http://h",
            "--storage endpoint_url: unknown key; did you mean 'options.endpoint_url'?",
        ),
        ("options.profil=me", "--storage options.profil: unknown key; did you mean 'profile'?"),
        ("cache_byte=1", "--storage cache_byte: unknown key; did you mean 'cache_bytes'?"),
        ("cache_bytes=-1", "--storage cache_bytes=-1: must be greater than 0"),
        ("options.headers=s3cr3t: [", "--storage options.headers .* not valid YAML"),
        ("nothing.yaml", "--storage nothing.yaml: no such file"),
    ],
)
def test_a_mistake_in_storage_is_one_line_with_the_right_key(word, message, capsys):
    assert data("stats", "sample:digits", "--storage", word) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "s3cr3t" not in error
    with pytest.raises(UserError, match=message):
        read_storage(word)


def write_samples(folder, samples=24):
    """Pictures with labels, years and a text; two of them twice."""
    writer = ShardWriter(folder, max_samples=8)
    for i in range(samples):
        number = {5: 3, 20: 11}.get(i, i)
        members = {
            "png": png(number),
            "cls": str(number % 3).encode(),
            "txt": b"of the people " * (1 + number),
        }
        writer.write(f"{i:03d}", {**members, "json": json.dumps({"year": 1900 + number}).encode()})
    finish_dataset(writer)


def tell(folder, fetching):
    """What a data set holds, whatever reaches its shards."""
    dataset = open_dataset(folder, fetching=fetching)
    about = {name: value for name, value in dataset.manifest.about.items() if name != "chosen"}
    samples = [(s["__key__"], s["label"], s["image"].tobytes(), s["json"]) for s in dataset]
    return about, samples, dataset.manifest.counts.tolist()


@pytest.mark.slow
def test_commands_on_a_bucket_give_what_they_give_on_its_copy(tmp_path, monkeypatch):
    write_samples(tmp_path / "made")
    for number, folder in enumerate(("here", "here", "more")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(tmp_path / "made" / f"{number:06d}.tar", tmp_path / folder)
    with s3_server(monkeypatch) as s3:
        for folder in ("here", "more"):
            s3.put(f"{tmp_path / folder}/*.tar", f"bucket/{folder}/")
        storage = "--storage", f"options.endpoint_url={os.environ['AWS_ENDPOINT_URL']}"
        monkeypatch.delenv("AWS_ENDPOINT_URL")  # else they would find the way without being told
        fetching = read_storage(storage[1])
        told = []
        for base, out, options in (
            (str(tmp_path), tmp_path / "a", ()),
            ("s3://bucket", tmp_path / "b", storage),
        ):
            place = f"{base}/here"

            def run(command, *words, options=options):
                assert data(command, *words, *options) == 0

            run("index", place)
            run("verify", place, "--processes", 1)
            run("split", place, out / "train", out / "test", "--fraction", 0.3, "--stratify", "label")
            run("split", place, out / "most", out / "few", "--fraction", 0.3, "--keys-only")
            run("select", place, out / "some", "--where", "year >= 1905 and label == 1")
            run("dedup", place, out / "unique")
            run("merge", place, f"{base}/more", out / "merged")
            run("merge", out / "some", out / "all")
            run("append", out / "all", f"{base}/more/*.tar")
            run("stats", place, "--json", out / "stats.json", "--processes", 1)
            run("show", place, "--output", out / "sheet.png")
            if options:
                run("bench", place, "--seconds", 1)
            run("tokenizer", place, out / "tokenizer", "--vocabulary", 300)
            run("tokenize", place, out / "tokens", "--tokenizer", out / "tokenizer", "--processes", 1)
            files = ("stats.json", "sheet.png", "unique/dropped.jsonl", "tokens/000000.tar")
            told.append(
                [tell(out / name, fetching) for name in PARTS] + [(out / f).read_bytes() for f in files]
            )
        assert told[0] == told[1]
    train, test, most, few, some, unique, merged, both = (sum(counts) for _, _, counts in told[0][:8])
    assert train + test == most + few == 16 and (unique, merged, both) == (15, 24, some + 8) and 0 < some < 6


def test_options_go_with_the_work_to_the_processes_that_tokenize(tmp_path):
    """They are not in the environment of another process, as credentials are."""
    write_samples(tmp_path / "data")
    with store_server(tmp_path / "data") as (url, server):
        server.login = "Bearer s3cr3t"
        dataset = open_dataset(url, fetching=read_storage("options.headers={Authorization: Bearer s3cr3t}"))
        source = plan_tokenize(
            f"{url}?X-Amz-Signature=1", dataset, sample_folder("sotu") / "tokenizer", "none", []
        )
        again = plan_tokenize(
            f"{url}?X-Amz-Signature=2", dataset, sample_folder("sotu") / "tokenizer", "none", []
        )
        work = pickle.loads(pickle.dumps(source.read))
        assert sum(len(list(work(job))) for job in source.jobs) == 24
        assert source.digest(1) == again.digest(1), (
            "a fresh signature goes on where the one before was stopped"
        )


@pytest.mark.parametrize("size, asked", [(200_000, 24 * [2048]), (100, 3 * [8 * 1024])])
def test_keys_of_large_remote_samples_cost_their_heads_and_of_small_ones_a_segment(tmp_path, size, asked):
    with ShardWriter(tmp_path / "data", max_samples=8) as writer:
        for i in range(24):
            writer.write(f"{i:03d}", {"bin": bytes(size)})
        finish_dataset(writer)
    with store_server(tmp_path / "data") as (url, server):
        assert list(open_dataset(url).keys()) == [f"{i:03d}" for i in range(24)]
        ranges = [headers["Range"] for _, path, headers in server.requests if path.endswith(".tar")]
    bounds = [[int(number) for number in text.removeprefix("bytes=").split("-")] for text in ranges]
    assert [last - first + 1 for first, last in bounds] == asked


def test_what_the_index_knows_is_selected_without_a_byte_of_the_shards(tmp_path):
    write_samples(tmp_path / "data")
    with store_server(tmp_path / "data") as (url, server):
        assert data("select", url, tmp_path / "some", "--where", "shard == '000001.tar'") == 0
        assert not [path for _, path, _ in server.requests if path.endswith(".tar")]
        assert len(open_dataset(tmp_path / "some")) == 8


def test_a_signed_tar_is_verified_beside_its_index_and_put_into_no_manifest(tmp_path, capsys):
    write_samples(tmp_path / "data")
    with store_server(tmp_path / "data") as (url, server):
        server.signature = "X-Amz-Signature=s3cr3t1"
        signed = f"{url}/000000.tar?{server.signature}"
        assert data("verify", signed, "--processes", 1) == 0
        for words in (
            ("split", signed, "a", "b"), ("dedup", signed, "a"), ("select", signed, "a", "--where", "label == 1"),
            ("verify", signed, "--exclude", "a"), ("index", signed), ("index", signed, "--output", "a"),
        ):  # fmt: skip
            server.requests.clear()
            assert data(*words) == 2
            assert "comes with a password or signature" in capsys.readouterr().err
            asked = {headers.get("Range") for method, _, headers in server.requests if method == "GET"}
            assert asked <= {"bytes=0-0"}, "refused before anything is read but the size"
        shard = tmp_path / "data" / "000000.tar"
        damaged = bytearray(shard.read_bytes())
        damaged[int(open_dataset(tmp_path / "data").sidecar(0).offset[3]) + 600] ^= 1
        shard.write_bytes(damaged)
        server.signature = "X-Amz-Signature=s3cr3t2"
        signed = f"{url}/000000.tar?{server.signature}"
        assert data("verify", signed, "--processes", 1) == 1
        told = capsys.readouterr()
        assert "on this machine alone" in told.out and "s3cr3t" not in told.out + told.err
        assert open_dataset(signed).marked.tolist() == [3]
