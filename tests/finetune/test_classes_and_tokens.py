"""Classes are compared by their names, and token numbers are read only by the encoder whose tokenizer gave them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from text_models import TEXTS, make_encoder
from tiny_run import make_run, write_run

from data_tools.__main__ import main as data_main
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.tokenizer import save_tokenizer, train_tokenizer
from finetune.config import load_config
from finetune.labels import UNKNOWN
from finetune.protocol import open_bench, run_protocol
from pretrain.config.load import load_config as load_run
from pretrain.config.sections import ProbeConfig, TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.probes import OnlineProbe, check_probe_data
from pretrain.objectives.base import Encoded
from pretrain.release.release import load_run_encoder, release_run

ROWS = {"cat": 0, "dog": 10, "horse": 20}


def write_pictures(folder: Path, classes: list[str]) -> str:
    """A packed folder of pictures with a bright bar, higher or lower by their class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / "raw" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 20, (28, 28), dtype=np.uint8)
            pixels[ROWS[name] : ROWS[name] + 8] += 200
            Image.fromarray(pixels).save(folder / "raw" / name / f"{i}.png")
    assert data_main(["pack", "images", str(folder / "raw"), str(folder / "packed")]) == 0
    return str(folder / "packed")


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Three classes to learn, and two of them to be judged by: their numbers differ."""
    root = tmp_path_factory.mktemp("packs")
    return write_pictures(root / "train", ["cat", "dog", "horse"]), write_pictures(
        root / "test", ["dog", "horse"]
    )


def bench_config(run_folder, train, test, *more):
    return load_config(
        "digits", [f"encoder={run_folder}", f"data.train={train}", f"data.test={test}", *more]
    )[0]


def test_a_test_set_that_lacks_a_class_scores_by_names(packs, run_folder):
    config = bench_config(run_folder, *packs, "protocol.labels_per_class=null", "protocol.methods=[knn]")
    result, _ = run_protocol(config, lambda _: None)
    assert result["classes"] == ["cat", "dog", "horse"]
    scores = {row["method"]: row["mean"] for row in result["rows"]}
    assert scores["knn_raw"] == 1.0


def test_a_class_never_seen_in_training_is_wrong_and_told(packs, run_folder):
    bench = open_bench(bench_config(run_folder, packs[1], packs[0]))
    assert bench.train.classes == ["dog", "horse"]
    numbers = {bench.test.dataset[i]["label"]: bench.test.number(bench.test.dataset[i]) for i in range(24)}
    assert numbers == {0: UNKNOWN, 1: 0, 2: 1}
    assert any("no training sample has count as wrong: cat" in note for note in bench.test.notes)


def test_names_on_one_side_only_are_told(packs, run_folder, few_digits):
    bench = open_bench(bench_config(run_folder, packs[0], few_digits[1]))
    assert bench.train.classes == ["cat", "dog", "horse"]
    assert set(bench.test.numbers.tolist()) <= {0, 1, 2, UNKNOWN} and 2 in bench.test.numbers
    assert any("compared by number: the training samples name them" in note for note in bench.test.notes)


def test_probes_compare_classes_by_names(packs, run_folder, monkeypatch):
    probe = OnlineProbe(ProbeConfig(train=packs[0], test=packs[1]))
    objective, engine = load_run_encoder(Path(run_folder)).objective, DDPEngine(TrainConfig(), World())
    monkeypatch.setattr(objective, "encode", lambda batch: Encoded(None, batch["image"].float().flatten(1)))
    assert probe.measure(objective, engine) == {
        "knn": 1.0,
        "linear": 1.0,
        "few_shot": 1.0,
        "few_shot_sd": 0.0,
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Tokenized texts with the encoder that learned from them, and the same texts from two other tokenizers."""
    root = tmp_path_factory.mktemp("texts")
    lines = [f'{{"text": "{text}", "party": "{party}"}}' for text in TEXTS * 4 for party in ("A", "B")]
    (root / "texts.jsonl").write_text("\n".join(lines) + "\n")
    assert data_main(["pack", "jsonl", str(root / "texts.jsonl"), str(root / "plain")]) == 0
    for name, size, source in (("own", 320, TEXTS * 3), ("other", 320, [t[::-1] for t in TEXTS * 3]),
                               ("large", 400, TEXTS * 3)):  # fmt: skip
        save_tokenizer(train_tokenizer(source, size), root / f"tokenizer_{name}", length=64)
        arguments = ["--tokenizer", str(root / f"tokenizer_{name}"), "--keep", "txt", "json"]
        assert data_main(["tokenize", str(root / "plain"), str(root / name), *arguments]) == 0
    config, _ = load_run("mlm_sotu", [
        "encoder={name: bert, max_length: 32, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
        f"data.path={root / 'own'}", f"run_dir={root / 'run'}",
    ])  # fmt: skip
    write_run(root / "run", config)
    release_run(root / "run")
    return root


def text_bench(root, train, test):
    names = [f"encoder={root / 'run' / 'release'}", f"data.train={root / train}", f"data.test={root / test}"]
    return load_config("text_classification", [*names, "data.label=json.party", "train.epochs=1"])[0]


@pytest.mark.parametrize("other", ["other", "large"])
def test_tokens_of_another_tokenizer_are_refused_with_the_remedy(texts, other):
    open_bench(text_bench(texts, "own", "plain"))  # plain texts are read by the encoder's own tokenizer
    for train, test, place in ((other, "own", "data.train="), ("own", other, "data.test=")):
        with pytest.raises(UserError, match=rf"{place}.*another tokenizer .*tokenize --tokenizer"):
            open_bench(text_bench(texts, train, test))


def test_a_probe_refuses_tokens_of_another_tokenizer(texts):
    from finetune.training import open_pretrained

    encoder = open_pretrained(texts / "run").encoder
    own, other = str(texts / "own"), str(texts / "other")
    check_probe_data(OnlineProbe(ProbeConfig(train=own, test=own)), encoder)
    for key, config in (
        ("train", ProbeConfig(train=other, test=own)),
        ("test", ProbeConfig(train=own, test=other)),
    ):
        with pytest.raises(UserError, match=rf"probe\.{key}=.*another tokenizer"):
            check_probe_data(OnlineProbe(config), encoder)


def test_a_token_that_the_vocabulary_lacks_is_a_line(texts, tmp_path):
    shutil.copytree(texts / "large", tmp_path / "bare")
    encoder = make_encoder("bert", open_dataset(str(texts / "own")))
    sample = {"__key__": "one", "tokens": np.array([3, 399], dtype=np.uint16)}
    with pytest.raises(UserError, match=r"sample 'one': has the token 399, the encoder only 320"):
        encoder.view(sample)


def test_a_release_passes_over_empty_texts(tmp_path):
    lines = ['{"text": ""}'] * 10 + [f'{{"text": "{text}"}}' for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    assert data_main(["pack", "jsonl", str(tmp_path / "texts.jsonl"), str(tmp_path / "plain")]) == 0
    save_tokenizer(train_tokenizer(TEXTS * 3, 320), tmp_path / "plain" / "tokenizer", length=64)
    config, _ = load_run("mlm_sotu", [
        "encoder={name: bert, max_length: 32, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
        f"data.path={tmp_path / 'plain'}", f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    write_run(tmp_path / "run", config)
    assert (release_run(tmp_path / "run") / "model.safetensors").is_file()


def test_a_model_card_has_what_says_something_of_the_model(tmp_path):
    import json

    make_run(tmp_path / "run")
    from pretrain.release.model_card import RUNS_OWN

    line = {"kind": "train", "step": 5, "loss": 0.5, "gan/accuracy": 0.75, **dict.fromkeys(RUNS_OWN[1:], 7.5)}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    card = (release_run(tmp_path / "run") / "README.md").read_text()
    assert "Last training step (5): loss 0.5, gan/accuracy 0.75\n" in card
