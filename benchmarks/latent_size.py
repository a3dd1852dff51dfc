"""Autoencoders against PCA with as many numbers an image: python -m benchmarks.latent_size [--steps N] [--sizes 8 16]

On MNIST (the IDX files of --data; without them the 12,000 digits that are embedded). PCA is fitted to all training
images, networks see --steps × 128 of them, and the squared error of a pixel in [0, 1] is measured on the test images.
PCA is the best linear code of a size: a network that does not beat it has learnt nothing. A VAE draws from its means.
Each line is printed as soon as it is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective

SIZES = (8, 16, 32)
WIDTHS = [
    "encoder={name: mlp, hidden_sizes: [512, 256]}",
    "objective.decoder=mlp",
    "objective.decoder_width=256",
]
METHODS = {
    "AE": ["autoencoder_mlp_digits", *WIDTHS, "objective.loss=mse"],
    # A deviation about as large as the errors, so that the divergence does not drown them.
    "VAE": ["vae_digits", *WIDTHS, "objective.likelihood=gaussian", "objective.deviation=0.1",
            "objective.beta_warmup=0"],
}  # fmt: skip
COMMON = ["optimizer.lr=1e-3", "optimizer.weight_decay=0", "schedule={name: cosine, warmup_ratio: 0.05}",
          "train={global_batch_size: 128, clip_grad_norm: null}", "data.workers=1"]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Squared error of a pixel on the test images, by what reconstructs them."""

    size: int
    errors: dict[str, float]


def compare(train: str, test: str, steps: int, seed: int, sizes: Sequence[int]) -> Iterator[Row]:
    """The errors of PCA, AE and VAE at each latent size; `train` and `test` name data sets of 28 × 28 grey images."""
    seen, unseen = (pixels(open_dataset(name)) for name in (train, test))
    mean, components = fit_pca(seen, max(sizes))
    for size in sizes:
        errors = {"PCA": pca_error(unseen, mean, components[:size])}
        errors |= {name: network_error(name, size, train, unseen, steps, seed) for name in METHODS}
        yield Row(size, errors)


def pixels(dataset: Dataset) -> np.ndarray:
    """All images (N, 784) in [0, 1]."""
    return np.stack([dataset[i]["image"].ravel() for i in range(len(dataset))]).astype(np.float32) / 255


def fit_pca(images: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (784,) and the first components (size, 784)."""
    mean = images.mean(0)
    _, vectors = np.linalg.eigh(np.cov((images - mean).T))  # by ascending variance
    return mean, vectors.T[::-1][:size]


def pca_error(images: np.ndarray, mean: np.ndarray, components: np.ndarray) -> float:
    centred = images - mean
    return float(((centred - centred @ components.T @ components) ** 2).mean())


def network_error(name: str, size: int, train: str, unseen: np.ndarray, steps: int, seed: int) -> float:
    """Train one network, and measure it on images (N, 784)."""
    recipe, *settings = METHODS[name]
    config, _ = load_config(
        recipe,
        [*COMMON, *settings, f"data.path={train}", f"objective.latent_size={size}", f"train.steps={steps}",
         f"seed={seed}"],
    )  # fmt: skip
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    assemble_trainer(config, objective, sources, engine, steps).fit()
    total = 0.0
    with engine.evaluating(objective):
        for part in np.array_split(unseen, 20):
            image = torch.from_numpy(part).view(-1, 1, 28, 28).to(engine.device)
            total += float((objective.reconstruct({"image": image}) - image).pow(2).sum())  # type: ignore[attr-defined]
    return total / unseen.size


HEAD = """| latent size | PCA | AE | VAE | AE / PCA | VAE / PCA |
| ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(row: Row) -> str:
    """Of a Markdown table: errors times 1,000, and what share of PCA's is left."""
    pca, ae, vae = (row.errors[name] for name in ("PCA", "AE", "VAE"))
    errors = " | ".join(f"{error * 1e3:.2f}" for error in (pca, ae, vae))
    return f"| {row.size} | {errors} | {ae / pca:.2f} × | {vae / pca:.2f} × |"


def pack_mnist(source: Path, out: Path) -> tuple[str, str]:
    """Shards of MNIST's IDX files; where there are none, the embedded digits."""
    if not source.is_dir():
        return "sample:digits", "sample:digits_test"
    from data_tools.__main__ import main as data_tools

    for part in ("train", "t10k"):
        if not (out / part).exists():
            images, labels = (next(source.glob(f"{part}-{kind}*")) for kind in ("images", "labels"))
            if data_tools(["pack", "idx", str(images), str(out / part), "--labels", str(labels)]):
                raise SystemExit(f"{source}: could not be packed")
    return str(out / "train"), str(out / "t10k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), help="MNIST's IDX files")
    parser.add_argument(
        "--packed", type=Path, default=Path("runs/mnist"), help="where their shards are written"
    )
    parser.add_argument("--steps", type=int, default=1000, help="of 128 images, for each network")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the latent vector")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    train, test = pack_mnist(asked.data, asked.packed)
    print(f"{asked.steps} steps of 128 images, seed {asked.seed}: squared error of a test pixel × 1,000\n")
    print(HEAD, flush=True)
    for row in compare(train, test, asked.steps, asked.seed, asked.sizes):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
