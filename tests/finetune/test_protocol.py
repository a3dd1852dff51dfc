"""The protocol end to end on a tiny encoder: the same table on any number of processes, every test sample once."""

from __future__ import annotations

import json
import math

import pytest
import torch

from data_tools.dataset.open import open_dataset
from finetune.__main__ import main
from finetune.config import load_config
from finetune.labels import LabelledDataConfig, draw, read_labelled
from finetune.protocol import Drawing, fine_tune, open_bench
from finetune.training import TestSet, accuracy, open_pretrained
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.release.release import release_run
from tests.processes import run

COLUMNS = ["full", "scratch", "linear", "linear_untrained", "knn", "knn_untrained", "knn_raw"]


def result(folder):
    return json.loads((folder / "finetune.json").read_text())


@pytest.fixture(scope="module")
def alone(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    assert main(["digits", *job, f"out={out}"]) == 0
    return out


def test_table_has_every_method_beside_its_controls(alone):
    found = result(alone)
    assert [(r["labels_per_class"], r["method"]) for r in found["rows"]] == [
        (n, m) for n in (2, 4) for m in COLUMNS
    ]
    assert found["test_samples"] == 101
    assert found["labels_total"] == 200
    for row in found["rows"]:
        assert len(row["draws"]) == 4
        assert all((101 * a) == pytest.approx(round(101 * a), abs=1e-4) for a in row["draws"])
        mean = sum(row["draws"]) / 4
        assert row["mean"] == pytest.approx(mean)
        assert row["sd"] == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in row["draws"]) / 3))
    assert (alone / "finetune.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(alone, job, tmp_path):
    done = run("finetune", ["digits", *job, f"out={tmp_path}"], processes=2)
    assert result(tmp_path)["rows"] == result(alone)["rows"]
    assert done.stdout.count("test samples") == 1


def test_release_and_run_are_the_same_encoder(run_folder, tmp_path):
    release_run(run_folder, tmp_path / "release")
    image = torch.randint(0, 255, (3, 1, 28, 28), dtype=torch.uint8)
    tokens = []
    for path in (run_folder, tmp_path / "release"):
        with torch.no_grad():
            tokens.append(open_pretrained(path).encoder.eval()({"image": image}))
    torch.testing.assert_close(*tokens)


def test_full_starts_from_the_pretrained_weights_and_scratch_does_not(job):
    config, _ = load_config("digits", [*job, "train.steps=1", "optimizer.lr=1e-9", "schedule.warmup_ratio=0"])
    bench = open_bench(config)
    engine = DDPEngine(TrainConfig(), World())
    weights = {
        method: fine_tune(config, method, bench, bench.train, engine, seed=1).encoder.state_dict()
        for method in ("full", "scratch")
    }
    for name, before in bench.pretrained.encoder.state_dict().items():
        torch.testing.assert_close(weights["full"][name], before, atol=1e-6, rtol=0)
    query = "model.layers.0.attention.q_proj.weight"
    assert (weights["scratch"][query] - bench.pretrained.encoder.state_dict()[query]).abs().max() > 0.01


def test_fresh_encoders_are_decided_by_their_seed(run_folder):
    pretrained = open_pretrained(run_folder)
    first, again, other = (pretrained.fresh(s).state_dict()["model.embeddings.cls_token"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_test_sample_is_judged_once_over_the_ranks(few_digits, run_folder, world_size):
    labelled = read_labelled(open_dataset(few_digits[1]), LabelledDataConfig())
    encoder = open_pretrained(run_folder).encoder
    parts = [TestSet(labelled, encoder, rank, world_size).batches() for rank in range(world_size)]
    seen = torch.cat([batch["image"] for part in parts for batch in part]).flatten(1).double()
    whole = torch.stack([torch.tensor(labelled.dataset[i]["image"]) for i in range(101)]).flatten(1).double()
    assert len(seen) == 101
    assert torch.equal(seen.sum(0), whole.sum(0))


def test_probes_leave_the_encoder_as_it_was(job):
    config, _ = load_config("digits", [*job, "protocol.methods=[linear, knn]"])
    bench = open_bench(config)
    before = {name: value.clone() for name, value in bench.pretrained.encoder.state_dict().items()}
    measured = Drawing(bench, DDPEngine(TrainConfig(), World())).measure(2, 0)
    assert set(measured) == set(COLUMNS[2:])
    for name, value in bench.pretrained.encoder.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder=null", "encoder: missing"),
        ("encoder=/no/such/folder", "no such folder"),
        ("data.label=lable", "no field 'lable'"),
        ("protocol.labels_per_class=[5000]", "no class has so many"),
        ("data.train=sample:sotu", "have no image"),
        ("task={name: text_classification}", "needs an encoder of text"),
    ],
)
def test_mistakes_are_one_line(job, tmp_path, capfd, override, message):
    arguments = [a for a in job if a.split("=")[0] != override.split("=")[0]]
    assert main(["digits", *arguments, override, f"out={tmp_path}"]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "finetune.json").exists()


def test_head_that_starts_as_the_probe_predicts_what_the_probe_predicts(job):
    config, _ = load_config("digits", [*job, "task.head_init=probe", "optimizer.lr=1e-9", "train.steps=1"])
    bench, engine = open_bench(config), DDPEngine(TrainConfig(), World())
    drawing = Drawing(bench, engine)
    chosen = draw(bench.train.numbers, 4, 0, 0)
    task = fine_tune(config, "full", bench, bench.train.select(chosen), engine, seed=1)
    assert accuracy(task, drawing.test, engine) == pytest.approx(drawing.probed("linear", chosen), abs=0.011)
    assert drawing.probed("linear", chosen) > 0.2
