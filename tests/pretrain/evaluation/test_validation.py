"""The held-out loss is the mean over every held-out sample, the same on any number of ranks and at any time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.commands.split import split
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.stream.collate import collate
from data_tools.stream.randomness import sample_rng
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.shares import share_batches
from pretrain.evaluation.validation import Validation
from pretrain.optim.build import build_optimizer
from pretrain.report.report import write_report
from pretrain.run.run import build_objective, run
from pretrain.tracking.metrics import read_metrics
from tests.data_tools.small_data import npy, write_images
from tests.pretrain.evaluation.measured import CASES, COMMON
from tests.processes import QUIET
from tests.processes import run as run_command
from tests.tiny_run import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Paragraphs split into two, and documents of tokens in two folders."""
    folder = tmp_path_factory.mktemp("data")
    split(open_dataset("sample:sotu"), 0.1, folder / "train", folder / "test")
    for name, seed in (("tokens", 1), ("tokens_held_out", 2)):
        rng = np.random.default_rng(seed)
        writer = ShardWriter(folder / name, max_samples=20, with_length=True)
        for i in range(60):
            length = int(rng.integers(3, 50))
            tokens = rng.integers(0, 64, length).astype(np.uint16)
            writer.write(f"{name}{i:03d}", {"tokens.npy": npy(tokens)}, length)
        finish_dataset(writer)
    return folder


def prepared(case: str, folder: Path, *overrides: str):
    recipe, *own = CASES[case]
    settings = [setting.replace("{folder}", str(folder)) for setting in own]
    config, _ = load_config(recipe, [*COMMON, *settings, *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    return config, objective, sources, engine


def measure(case: str, folder: Path, *overrides: str) -> dict[str, float]:
    config, objective, sources, engine = prepared(case, folder, *overrides)
    validation = Validation(config, objective, sources)
    with engine.evaluating(objective):
        return validation.measure(engine)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "engine"), [(2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_ranks_that_share_the_samples_measure_what_one_alone_does(folder, tmp_path, processes, engine, alone):
    out = tmp_path / "measured.json"
    module = "tests.pretrain.evaluation.measured"
    run_command(module, [str(out), str(folder), f"engine={engine}"], processes)
    found = json.loads(out.read_text())
    for case, expected in alone.items():
        for kind, values in expected.items():
            words = {name: value for name, value in values.items() if isinstance(value, str)}
            numbers = {name: value for name, value in found[case][kind].items() if name not in words}
            assert words.items() <= found[case][kind].items(), (case, kind)
            expected_numbers = {name: value for name, value in values.items() if name not in words}
            assert numbers == pytest.approx(expected_numbers, rel=1e-6, abs=1e-7), (case, kind)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "measured.json"
    run_command("tests.pretrain.evaluation.measured", [str(out), str(folder)])
    found = json.loads(out.read_text())
    assert set(found["mae"]) == {"validation", "probe", "representation"}
    return found


def test_every_rank_makes_as_many_forward_passes_and_every_sample_counts_once():
    for count, batch, ranks in ((47, 4, 3), (1, 4, 3), (12, 4, 3), (13, 4, 3), (7, 100, 2)):
        rounds = [list(share_batches(count, batch, rank, ranks)) for rank in range(ranks)]
        assert len({len(own) for own in rounds}) == 1
        counted = [index for own in rounds for batch_, counts in own if counts for index in batch_.tolist()]
        assert sorted(counted) == list(range(count))
        assert all(len(indices) for own in rounds for indices, _ in own)


def test_it_is_the_mean_over_all_hidden_tokens_of_all_held_out_samples(folder):
    config, objective, sources, engine = prepared("mlm", folder, "validation.samples=100000")
    dataset = open_dataset(folder / "test").select(range(40))
    objective.config = type(objective.config)(mask_ratio=0.15)
    total = count = 0.0
    with engine.evaluating(objective):
        for sample in dataset:
            example = objective.example(sample, sample_rng(config.seed, 0, sample["__key__"]))
            batch = collate([example])
            total += float(objective.loss(objective.phases()[0], batch).sum)
            count += objective.count(objective.phases()[0], batch)
    objective.config = config.objective
    validation = Validation(config, objective, sources)
    validation.stream.dataset = dataset
    validation.stream.order = type(validation.stream.order)(
        dataset.counts, validation.stream.order.layout, config.seed
    )
    validation.samples = len(dataset)
    with engine.evaluating(objective):
        found = validation.measure(engine)
    assert found["loss"] == pytest.approx(total / count, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert set(found) == {"loss", "accuracy", "perplexity"}


def test_it_asks_the_same_question_every_time_and_leaves_the_random_state_alone(folder):
    config, objective, sources, engine = prepared("mae", folder)
    validation = Validation(config, objective, sources)
    torch.manual_seed(5)
    with engine.evaluating(objective):
        first = validation.measure(engine)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    with engine.evaluating(objective):
        assert validation.measure(engine) == first


def test_mask_ratio_is_that_of_training_unless_told(folder):
    as_trained = measure("mlm", folder, "validation.mask_ratio=null")
    assert as_trained == measure("mlm", folder, "validation.mask_ratio=0.3")
    assert as_trained != measure("mlm", folder)
    assert measure("mae", folder, "validation.mask_ratio=0.9")["loss"] > 0


def test_bits_per_byte_are_over_the_bytes_of_the_guessed_text(folder):
    config, objective, sources, engine = prepared("clm", folder)
    text = "A naïve “quotation” — 42 %, and  spaces."
    ids = objective.encoder.tokens_of({"text": text, "__key__": "x"})
    assert objective.token_bytes[ids].sum() == len(text.encode())
    validation = Validation(config, objective, sources)
    with engine.evaluating(objective):
        found = validation.measure(engine)
    tokens = total = 0.0
    for positions, _ in share_batches(validation.samples, 50, 0, 1):
        for sample in validation.stream.samples(positions):
            row = objective.example(sample, sample_rng(config.seed, 0, sample["__key__"]))
            guessed = row["target"][row["target"] >= 0]
            tokens += len(guessed)
            total += len(objective.encoder.tokenizer.decode(guessed, skip_special_tokens=True).encode())
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) * tokens / total, rel=2e-3)
    assert "bits_per_byte" not in measure("packed", folder), (
        "there is no tokenizer, so nobody knows the bytes"
    )


def test_packed_rows_are_all_of_the_held_out_tokens(folder):
    config, objective, sources, _ = prepared("packed", folder)
    validation = Validation(config, objective, sources)
    rows = list(validation.stream.samples(np.arange(validation.samples)))
    assert {row["__epoch__"] for row in rows} == {0}
    tokens = sum(int((row["document_ids"] > 0).sum()) for row in rows)
    assert tokens == int(open_dataset(folder / "tokens_held_out").lengths.sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.validation=sample:digits"], r"data.validation=sample:digits: is trained on"),
        (["validation.every=5"], r"data.validation names no data"),
        (["data.validation=x", "validation.samples=0"], r"validation.samples=0: must be greater than 0"),
        (["data.validation=x", "validation.mask_ratio=1"], r"validation.mask_ratio=1.0: must lie between"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        load_config("mae_digits", settings)
    with pytest.raises(UserError, match="'autoencoder' has no mask_ratio"):
        load_config("autoencoder_digits", ["data.validation=x", "validation.mask_ratio=0.5"])


def test_a_copy_of_the_training_data_is_no_held_out_data(tmp_path):
    write_images(tmp_path / "a")
    write_images(tmp_path / "b")
    settings = [f"data.path={tmp_path / 'a'}", f"data.validation={tmp_path / 'b'}", "encoder.image_size=8",
                "encoder.patch_size=4"]  # fmt: skip
    config, _ = load_config("mae_digits", [*SMALL, *settings])
    sources = open_sources(config.data)
    with pytest.raises(UserError, match="holds the same samples as"):
        Validation(config, build_objective(config, first_of(sources)), sources)


def test_damage_in_held_out_data_is_told_and_ends_the_run(tmp_path):
    write_images(tmp_path / "a", samples=20)
    write_images(tmp_path / "b", samples=21, per_shard=21)
    shard = next((tmp_path / "b").glob("*.tar"))
    raw = bytearray(shard.read_bytes())
    at = raw.index(b"IDAT")
    raw[at : at + 30] = b"x" * 30
    shard.write_bytes(raw)
    settings = [f"data.path={tmp_path / 'a'}", f"data.validation={tmp_path / 'b'}", "encoder.image_size=8",
                "encoder.patch_size=4", "train.global_batch_size=4"]  # fmt: skip
    config, _ = load_config("mae_digits", [*SMALL, *settings])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    validation = Validation(config, objective, sources)
    with (
        engine.evaluating(objective),
        pytest.raises(UserError, match=r"1 of 21 samples are damaged, e.g. 0000\d\d in"),
    ):
        validation.measure(engine)


def test_a_run_logs_it_shows_it_and_learns_the_same_with_and_without(tmp_path, capsys):
    settings = [*SMALL, "train.steps=4", "train.global_batch_size=8", "tracking.log_every=1",
                *QUIET, "checkpoint.every=100"]  # fmt: skip
    told = ["data.validation=sample:digits_test", "validation.samples=20", "validation.every=3"]
    losses = []
    for name, more in (("plain", []), ("told", told)):
        run(load_config("mae_digits", [*settings, *more, f"run_dir={tmp_path / name}"])[0])
        losses.append([v["loss"] for v in read_metrics(tmp_path / name) if v["kind"] == "train"])
    assert losses[0] == losses[1]
    measured = {v["step"]: v["loss"] for v in read_metrics(tmp_path / "told") if v["kind"] == "validation"}
    assert list(measured) == [0, 3, 4]
    assert measured[4] < measured[0]
    assert f"held out: loss {measured[4]:.4f}" in capsys.readouterr().out
    page = write_report(tmp_path / "told").read_text()
    assert f"{measured[4]:.4g}" in page
    assert "Held-out loss" in page
