"""Texts: parts of speech from frozen encoders of MLM, ELECTRA and CLM, and what a language model saves against xz."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.brown import read_sentences
from benchmarks.learning.runs import describe, pretrain, start
from data_tools.commands.split import held_out, split
from data_tools.dataset.open import open_dataset
from pretrain.config.load import build_config
from pretrain.data import first_of, open_sources
from pretrain.evaluation.probes import fit_linear
from pretrain.objectives.base import Objective
from pretrain.objectives.words import NO_WORD, align, find_words
from pretrain.release.release import load_run_encoder
from pretrain.run.folder import load_run_config
from pretrain.run.run import build_objective

SIZES = {100: 10, 1000: 3}
"""Labelled sentences, and how often they are drawn."""
TEST_SENTENCES, BATCH = 2000, 100
LENGTH = ["encoder.max_length=64"]
TRAIN = ["train.steps=1000", "train.global_batch_size=64"]
ENCODERS = {
    "mlm": ["mlm_sotu", *LENGTH, *TRAIN, "encoder.max_position_embeddings=64", "optimizer.lr=2e-3"],
    "electra": ["electra_sotu", *LENGTH, *TRAIN, "encoder.max_position_embeddings=64"],
    "clm": ["clm_sotu", *LENGTH, *TRAIN, "encoder.n_positions=64", "optimizer.lr=2e-3"],
}
LANGUAGE_MODEL = ["clm_sotu", "train.steps=1500"]


@dataclass(frozen=True)
class Words:
    """The words of some sentences one after the other, and where each sentence begins and the last ends."""

    words: list[str]
    tags: list[str]
    starts: list[int]

    def of(self, sentences: np.ndarray) -> np.ndarray:
        """The numbers of the words of some sentences."""
        return np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in sentences])


def measure(source: Path, out: Path, only: list[str]) -> Iterator[str]:
    """The lines of both tables, each when it is measured."""
    yield from measure_tags(source, out, only)
    yield ""
    yield from measure_bytes(out)


def measure_tags(source: Path, out: Path, only: list[str]) -> Iterator[str]:
    """Accuracy on the words of held-out documents, by a linear probe on each word's vector."""
    train_path, test_path = pack_brown(source / "brown", out / "data" / "brown")
    train, test = (read_words(path) for path in (train_path, test_path))
    known = sorted(set(train.tags))
    yield (f"| part of speech of {len(test.words):,} words of held-out Brown documents, {len(known)} tags | "
           + " | ".join(f"{size:,} sentences" for size in SIZES) + " | pretraining |")  # fmt: skip
    yield "| --- | ---: | ---: | --- |"
    cells = [describe(most_frequent(train, test, size)) for size in SIZES]
    yield f"| most frequent tag of the word | {' | '.join(cells)} | – |"
    for name, (recipe, *settings) in ENCODERS.items():
        if only and name not in only:
            continue
        run = pretrain(recipe, out / "text" / name, [f"data.path={train_path}", *settings])
        config = build_config(load_run_config(run))
        untrained = build_objective(config, first_of(open_sources(config.data)))
        for label, objective in ((f"{name} untrained", untrained), (name, load_run_encoder(run).objective)):
            cells = [describe(draws) for draws in probe(objective, train_path, test_path, train, test, known)]
            steps = (
                f"{config.train.steps:,} steps of {config.train.global_batch_size}" if label == name else "–"
            )
            yield f"| {label} ({config.encoder.name}) | {' | '.join(cells)} | {steps} |"


def pack_brown(source: Path, out: Path) -> tuple[str, str]:
    """Shards of sentences, a tenth of the documents held out, with a tokenizer of 8,192 that has seen the rest."""
    parts = {side: out / side for side in ("train", "test")}
    if not (parts["test"] / "tokenizer" / "tokenizer.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        archive = next(source.glob("*.tar.gz"))
        for side, folder in parts.items():
            lines = out / f"{side}.jsonl"
            with lines.open("w", encoding="utf-8") as file:
                for document, words, tags in read_sentences(archive):
                    if held_out(document, 0.1) == (side == "test"):
                        file.write(json.dumps({"text": " ".join(words), "tags": tags}) + "\n")
            start("data_tools", ["pack", "jsonl", str(lines), str(folder)], out / f"pack_{side}.log")
        for folder in parts.values():
            start("data_tools", ["tokenizer", str(parts["train"]), str(folder / "tokenizer"), "--vocabulary", "8192"],
                  out / "tokenizer.log")  # fmt: skip
    return str(parts["train"]), str(parts["test"])


def sentences_of(path: str) -> list[dict[str, object]]:
    """Of the labelled side all that could be drawn, of the other as many as judge, spread over the documents."""
    dataset = open_dataset(path)
    count = min(len(dataset), TEST_SENTENCES)
    return [dataset[i] for i in np.linspace(0, len(dataset) - 1, count).astype(int).tolist()]


def read_words(path: str) -> Words:
    words: list[str] = []
    tags: list[str] = []
    starts = [0]
    for sample in sentences_of(path):
        words += str(sample["text"]).split(" ")
        tags += sample["json"]["tags"]  # type: ignore[index]
        starts.append(len(words))
    return Words(words, tags, starts)


def draw(train: Words, size: int, number: int) -> np.ndarray:
    """The words of one draw of labelled sentences."""
    return train.of(np.random.default_rng([0, number]).permutation(len(train.starts) - 1)[:size])


def most_frequent(train: Words, test: Words, size: int) -> list[float]:
    """By draw: the tag that a word has most often among the labelled ones; the most frequent of all for others."""
    found = []
    for number in range(SIZES[size]):
        by_word: dict[str, Counter[str]] = {}
        for i in draw(train, size, number).tolist():
            by_word.setdefault(train.words[i], Counter())[train.tags[i]] += 1
        common = sum(by_word.values(), Counter[str]()).most_common(1)[0][0]
        best = {word: tags.most_common(1)[0][0] for word, tags in by_word.items()}
        right = [best.get(word, common) == tag for word, tag in zip(test.words, test.tags, strict=True)]
        found.append(sum(right) / len(right))
    return found


def probe(
    objective: Objective, train_path: str, test_path: str, train: Words, test: Words, known: list[str]
) -> Iterator[list[float]]:
    """By size, the accuracies by draw of logistic regression on the words' vectors."""
    seen, judged = (embed_words(objective, path) for path in (train_path, test_path))  # (words, D) each
    numbers = {tag: i for i, tag in enumerate(known)}
    labels = torch.tensor([numbers[tag] for tag in train.tags])
    answers = torch.tensor([numbers.get(tag, -1) for tag in test.tags])
    for size, draws in SIZES.items():
        found = []
        for number in range(draws):
            chosen = torch.from_numpy(draw(train, size, number))
            weight, bias = fit_linear(seen[chosen], labels[chosen], len(known))
            found.append(float(((judged @ weight.T + bias).argmax(1) == answers).float().mean()))
        yield found


@torch.no_grad()
def embed_words(objective: Objective, path: str) -> Tensor:
    """The mean over its sub-words of each word's vectors (words, D); zeros for words behind the longest row."""
    encoder = objective.product_encoder
    for role in objective.roles.values():
        role.eval()
    samples, parts = sentences_of(path), []
    for first in range(0, len(samples), BATCH):
        some = samples[first : first + BATCH]
        tokens = encoder(objective.collate([objective.view(sample) for sample in some]))  # (B, L, D)
        for sample, vectors in zip(some, tokens, strict=True):
            spans = find_words(str(sample["text"]))
            words = torch.from_numpy(align(encoder.offsets_of(sample), spans, "all"))  # type: ignore[operator]
            inside = words != NO_WORD
            sums = torch.zeros(len(spans), vectors.shape[1]).index_add_(
                0, words[inside], vectors[: len(words)][inside]
            )
            parts.append(sums / torch.bincount(words[inside], minlength=len(spans)).clamp(min=1)[:, None])
    return torch.cat(parts)


def measure_bytes(out: Path) -> Iterator[str]:
    """Bits a byte of held-out years of State of the Union addresses: a language model against xz."""
    train, test = (out / "data" / f"sotu_{side}" for side in ("train", "test"))
    if not (test / "manifest.json").exists():
        split(open_dataset("sample:sotu"), 0.1, train, test, "learning", by="year")
    texts = {side: read_text(side) for side in (train, test)}
    recipe, *settings = LANGUAGE_MODEL
    every = next(int(s.split("=")[1]) for s in settings if s.startswith("train.steps"))
    run = pretrain(recipe, out / "text" / "language_model", [
        f"data.path={train}", f"data.validation={test}", f"validation.every={every}", "validation.samples=100000",
        *settings])  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    measured = [line for line in lines if line["kind"] == "validation"][-1]
    alone, both, before = (len(lzma.compress(x, preset=9)) for x in
                           (texts[test], texts[train] + texts[test], texts[train]))  # fmt: skip
    size = len(texts[test])
    yield f"| {size:,} bytes of held-out years of addresses | bits a byte |"
    yield "| --- | ---: |"
    yield f"| xz -9 | {8 * alone / size:.3f} |"
    yield f"| xz -9 behind the {len(texts[train]):,} bytes that are trained on | {8 * (both - before) / size:.3f} |"
    yield f"| {' '.join(LANGUAGE_MODEL)} | {measured['bits_per_byte']:.3f} |"


def read_text(folder: Path) -> bytes:
    """All texts of a data set, a line each."""
    dataset = open_dataset(str(folder))
    return "\n".join(dataset[i]["text"] for i in range(len(dataset))).encode()
