"""Images: each objective's encoder at ten labels a class, against raw pixels, untrained encoders and a fair scratch.

Every choice (how many steps of fine-tuning, at which rate) is made on samples of their own, with three draws; the test
samples are read once, with ten. From scratch has a larger grid than what it is compared with, and no layer-wise decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import yaml

from benchmarks.latent_size import pack_mnist
from benchmarks.learning.emoji import pack_emoji
from benchmarks.learning.runs import describe, finetune, pretrain
from data_tools.commands.split import split
from data_tools.dataset.open import open_dataset
from pretrain.evaluation.probes import linear_accuracy

LABELS, DRAWS, TRIAL_DRAWS, TEST_SAMPLES = 10, 10, 3, 2000
RATES = (5e-4, 2e-3)
STEPS = (100, 400)
SCRATCH_STEPS = (100, 400, 1600)
PROBES = "[linear,knn]"
MNIST: dict[str, list[str]] = {
    "mae": ["mae_digits"],
    "simmim": ["simmim_digits"],
    "simclr": ["simclr_digits"],
    "vicreg": ["vicreg_digits"],
    "dino": ["dino_digits"],
    "ijepa": ["ijepa_digits"],
    "autoencoder": ["autoencoder_digits"],
    "vae": ["vae_digits"],
    "vqvae": ["vqvae_digits"],
    "context_encoder": ["context_encoder_digits"],
    "gan": ["gan_digits"],
    "bigan": ["bigan_digits"],
    "attribute": ["attribute_digits"],
}
"""By the name of its row: the demo recipe, and what differs."""
SIZE = "image_size: 48, num_channels: 3, image_mean: [0.7, 0.7, 0.7], image_std: [0.35, 0.35, 0.35]"
RESNET = (
    f"encoder={{name: resnet, {SIZE}, embedding_size: 32, hidden_sizes: [32, 64, 128], depths: [1, 1, 1], "
    "layer_type: basic}"
)
VIT = f"encoder={{name: vit, {SIZE}, patch_size: 8, hidden_size: 96, num_hidden_layers: 4, num_attention_heads: 4}}"
CONVNEXT = f"encoder={{name: convnextv2, {SIZE}, patch_size: 4, hidden_sizes: [64], depths: [2]}}"
VIEW = "{crop_scale: [0.2, 1.0], flip: 0.5, jitter: 0.8, saturation: 0.4, hue: 0.1, grey: 0.2, blur: 0}"
EMOJI: dict[str, list[str]] = {
    "simclr": ["simclr_digits", RESNET, f"objective.views={VIEW}", "optimizer.lr=2e-3", "train.steps=600"],
    "vicreg": ["vicreg_digits", RESNET, f"objective.views={VIEW}", "optimizer.lr=2e-3", "train.steps=600"],
    "attribute": ["attribute_digits", RESNET, "train.steps=800",
                  "objective={name: attribute, attributes: {colour: {derive: dominant_colour}, edges: {derive: "
                  "edge_orientation}, rotation: {derive: rotation}, jigsaw: {derive: jigsaw}}}"],
    "mae": ["mae_digits", VIT, "objective.flip=true", "objective.crop_scale=[0.4, 1]"],
    "ijepa": ["ijepa_digits", VIT, "train.steps=600"],
    "dino": ["dino_digits", f"{VIT[:-1]}, pooling: cls}}", "objective.small_size=24", "train.steps=400",
             *(f"objective.{crop}={{flip: 0.5, saturation: 0.4, hue: 0.1, grey: 0.2}}"
               for crop in ("first_crop", "second_crop", "small_crop"))],
    "autoencoder": ["autoencoder_digits", CONVNEXT, "objective.latent_size=64"],
    "vae": ["vae_digits", CONVNEXT, "objective.latent_size=64"],
    "vqvae": ["vqvae_digits", CONVNEXT, "objective.pixel_variance=0.12"],
    "simmim": ["simmim_digits", CONVNEXT, "train.steps=800"],
    "context_encoder": ["context_encoder_digits", CONVNEXT, "objective.hole_size=24", "train.steps=600"],
    "gan": ["gan_digits", CONVNEXT, "train.steps=800"],
    "bigan": ["bigan_digits", CONVNEXT],
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """A data set: what is pretrained on, what labels are drawn from, what chooses, what judges."""

    name: str
    parts: dict[str, str]
    task: list[str]
    """Of fine-tuning: augmentations that suit them."""
    candidates: dict[str, list[str]]
    """By the name of its row: a recipe, and settings."""


def measure(images: Images, out: Path, only: list[str]) -> Iterator[str]:
    """The lines of the table of one data set, each when it is measured."""
    yield f"| {images.name}, {LABELS} labels a class, {DRAWS} draws | kNN | linear | fine-tuned | pretraining |"
    yield "| --- | ---: | ---: | ---: | --- |"
    folder = out / images.name
    recipe = write_recipe(images, folder / "finetune.yaml")
    scratches: dict[str, str] = {}
    first = True
    for name, (base, *settings) in images.candidates.items():
        if only and name not in only:
            continue
        run = pretrain(base, folder / "runs" / name, [f"data.path={images.parts['pretrain']}", *settings])
        probes = judge(recipe, run, images, folder / "probes" / name, PROBES, None)
        if first:
            yield f"| raw pixels | {describe(probes['knn_raw'])} | {describe(raw_linear(images))} | – | – |"
            first = False
        encoder = describe_encoder(run)
        if encoder not in scratches:
            best, scratches[encoder] = climb(
                recipe, run, images, folder / "scratch" / name, "scratch", SCRATCH_STEPS
            )
            yield (
                f"| {encoder} from scratch, at its best | – | – | {describe(best)} | {scratches[encoder]} |"
            )
            yield (f"| {encoder} untrained | {describe(probes['knn_untrained'])} | "
                   f"{describe(probes['linear_untrained'])} | – | – |")  # fmt: skip
        tuned, how = climb(recipe, run, images, folder / "tuned" / name, "full", STEPS)
        yield (f"| {name} ({encoder}) | {describe(probes['knn'])} | {describe(probes['linear'])} | {describe(tuned)} | "
               f"{describe_run(run)}; tuned {how} |")  # fmt: skip


def write_recipe(images: Images, path: Path) -> Path:
    """The recipe of all fine-tuning of a data set."""
    values = {
        "task": {"name": "image_classification", "head_init": "probe", "label_smoothing": 0.1},
        "data": {"train": images.parts["train"], "label": "label", "test_samples": TEST_SAMPLES},
        "protocol": {"labels_per_class": [LABELS]},
        "train": {"steps": STEPS[0], "global_batch_size": 32, "clip_grad_norm": 1.0},
        "optimizer": {"lr": RATES[0], "betas": [0.9, 0.999], "weight_decay": 0.05, "layer_decay": 0.75},
        "schedule": {"name": "cosine", "warmup_ratio": 0.1},
        "scratch": {"optimizer": {"layer_decay": None}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def judge(
    recipe: Path,
    run: Path,
    images: Images,
    out: Path,
    methods: str,
    how: tuple[int, float] | None,
    side: str = "test",
) -> dict[str, list[float]]:
    """Accuracies by method and draw."""
    steps, rate = how or (STEPS[0], RATES[0])
    draws = DRAWS if side == "test" else TRIAL_DRAWS
    return finetune(
        str(recipe), run, out,
        [f"data.test={images.parts[side]}", f"protocol.methods={methods}", f"protocol.draws={draws}",
         f"train.steps={steps}", f"optimizer.lr={rate}", *images.task],
    )  # fmt: skip


def climb(
    recipe: Path, run: Path, images: Images, out: Path, method: str, steps: tuple[int, ...]
) -> tuple[list[float], str]:
    """The accuracies by draw on the test samples, at the steps and the rate that are best on those that choose."""
    tried = {}
    for how in product(steps, RATES):
        where = out / f"{how[0]}_{how[1]:g}"
        tried[how] = fmean(judge(recipe, run, images, where, f"[{method}]", how, "select")[method])
    best = max(tried, key=lambda how: tried[how])
    found = judge(recipe, run, images, out / "test", f"[{method}]", best)[method]
    return found, f"{best[0]} steps at {best[1]:g}"


def describe_encoder(run: Path) -> str:
    """Its kind and size: rows of the same encoder share what it reaches from scratch."""
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["encoder"]
    width = settings.get("hidden_size") or settings.get("hidden_sizes")
    depth = settings.get("num_hidden_layers") or settings.get("depths")
    patch = f" of patches {settings['patch_size']}" if "patch_size" in settings else ""
    return f"{settings['name']} {width}×{depth}{patch}"


def describe_run(run: Path) -> str:
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["train"]
    return f"{settings['steps']:,} steps of {settings['global_batch_size']}"


def raw_linear(images: Images) -> list[float]:
    """A linear classifier on pixels (laid on white), on the draws of fine-tuning's protocol."""
    from finetune.labels import draw

    (train, labels), (test, test_labels) = (read_pixels(images, side) for side in ("train", "test"))
    found = []
    for number in range(DRAWS):
        chosen = torch.from_numpy(draw(labels, LABELS, 0, number))
        known = torch.from_numpy(labels)[chosen]
        found.append(linear_accuracy(train[chosen], known, test, torch.from_numpy(test_labels)))
    return found


def read_pixels(images: Images, side: str) -> tuple[torch.Tensor, np.ndarray]:
    """All images (N, D) in [0, 1], and their labels (N,)."""
    from pretrain.encoders.image.base import image_to_array

    dataset = open_dataset(images.parts[side])
    samples = [dataset[i] for i in range(len(dataset))]
    if side == "test":  # those that fine-tuning is judged by
        samples = [
            samples[i] for i in np.sort(np.random.default_rng(0).permutation(len(samples))[:TEST_SAMPLES])
        ]
    channels = 1 if samples[0]["image"].shape[2] == 1 else 3
    pixels = np.stack([image_to_array(s["image"], channels, "pixels").ravel() for s in samples])
    return torch.from_numpy(pixels.astype(np.float32) / 255), np.array([s["label"] for s in samples])


def open_mnist(source: Path, out: Path) -> Images:
    train, test = pack_mnist(source / "mnist", out / "data")
    labels, select = out / "data" / "mnist_train", out / "data" / "mnist_select"
    if not (select / "manifest.json").exists():
        split(open_dataset(train), 0.1, labels, select, "learning", None, None, None)
    parts = {"pretrain": str(labels), "train": str(labels), "select": str(select), "test": test}
    return Images("mnist", parts, ["task.shift=2", "task.rotate=10", "task.scale=[0.9,1.1]"], MNIST)


def open_emoji(source: Path, out: Path) -> Images:
    parts = pack_emoji(source / "emoji", out / "data" / "emoji")
    return Images("emoji", parts, ["task.shift=4", "task.rotate=10", "task.scale=[0.8,1.2]", "task.flip=true"],
                  EMOJI)  # fmt: skip
