"""Generated digits by FID and KID, on features of one extractor, named in the table: a ViT that was taught MNIST.

FID (Heusel et al. 2017, arXiv:1706.08500) compares the means and covariances of features of real and generated images,
KID (Bińkowski et al. 2018, arXiv:1801.01401) all their moments of order three, without bias. Neither can be compared
with figures of other extractors. Between two halves of the real images they say what nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.image import open_mnist
from benchmarks.learning.runs import pretrain
from data_tools.dataset.open import open_dataset
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.objectives.base import Objective
from pretrain.release.release import load_run_encoder
from pretrain.run.run import build_objective

SAMPLES, BATCH, SUBSETS, SUBSET = 5000, 250, 20, 1000
TEACHER = [
    "attribute_digits",
    "objective={name: attribute, attributes: {digit: {field: label}}}",
    "train.steps=1000",
]
"""The extractor: the encoder of `attribute_digits` with the digit itself as its attribute."""
GENERATORS = {
    "gan": ["gan_digits"],
    "bigan": ["bigan_digits", "train.steps=1500"],
    "vae": ["vae_digits"],
}


def measure(source: Path, out: Path, only: list[str]) -> Iterator[str]:
    """The lines of the table, each when it is measured."""
    parts = open_mnist(source, out).parts
    folder = out / "generated"
    extractor = load_run_encoder(
        pretrain(TEACHER[0], folder / "extractor", [f"data.path={parts['train']}", *TEACHER[1:]])
    )
    extract = make_extractor(extractor.objective)
    real, other = (extract(read_images(parts[side])) for side in ("train", "test"))
    yield (f"| images of MNIST, {SAMPLES:,}; features: {real.shape[1]} of a ViT, `attribute_digits` taught the digit | "
           "FID | 1,000 × KID |")  # fmt: skip
    yield "| --- | ---: | ---: |"
    yield f"| real against real (train, test) | {describe(real, other)} |"
    for name, (recipe, *settings) in GENERATORS.items():
        if only and name not in only:
            continue
        data = f"data.path={parts['pretrain']}"
        run = pretrain(recipe, folder / name, [data, *settings])
        untrained = build(recipe, [data, *settings])
        yield f"| {name} untrained | {describe(extract(generate(untrained)), other)} |"
        yield f"| {name} | {describe(extract(generate(load_run_encoder(run).objective)), other)} |"


def build(recipe: str, settings: list[str]) -> Objective:
    config, _ = load_config(recipe, settings)
    return build_objective(config, first_of(open_sources(config.data)))


def read_images(path: str) -> Tensor:
    """Images (N, C, H, W) in [0, 1], spread over a data set."""
    dataset = open_dataset(path)
    chosen = np.linspace(0, len(dataset) - 1, SAMPLES).astype(int).tolist()
    return torch.stack([torch.from_numpy(dataset[i]["image"]).permute(2, 0, 1) / 255 for i in chosen])


@torch.no_grad()
def generate(objective: Objective) -> Tensor:
    """Images (N, C, H, W) in [0, 1] from the latent vectors that the objective draws from."""
    rng = np.random.default_rng(0)
    shape = (SAMPLES, objective.config.latent_size)
    uniform = getattr(objective.config, "latent", "normal") == "uniform"
    latent = torch.from_numpy(rng.uniform(-1, 1, shape) if uniform else rng.standard_normal(shape)).float()
    roles = objective.roles
    draw: Callable[[Tensor], Tensor] = (
        objective.draw
        if "decoder" in roles
        else roles["generator_ema" if "generator_ema" in roles else "generator"]  # type: ignore[assignment]
    )
    for role in roles.values():
        role.eval()
    return torch.cat([draw(part) for part in latent.split(BATCH)])


def make_extractor(objective: Objective) -> Callable[[Tensor], Tensor]:
    """Images (N, C, H, W) in [0, 1] → pooled features (N, D)."""
    for role in objective.roles.values():
        role.eval()

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        return torch.cat([objective.encode({"image": part}).pooled for part in images.split(BATCH)]).double()

    return extract


def describe(generated: Tensor, real: Tensor) -> str:
    mean, sd = kid(generated, real)
    return f"{fid(generated, real):.2f} | {1000 * mean:.2f} ± {1000 * sd:.2f}"


def fid(a: Tensor, b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of features (N, D)."""
    root = square_root(a.T.cov())
    product = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * product)


def square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kid(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean and deviation over subsets of the unbiased squared MMD with the kernel (x·y / D + 1)³."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(SUBSETS):
        x, y = (z[torch.from_numpy(rng.permutation(len(z))[:SUBSET])] for z in (a, b))
        n = len(x)
        within = [(kernel(z, z).sum() - kernel(z, z).trace()) / (n * (n - 1)) for z in (x, y)]
        found.append(float(within[0] + within[1] - 2 * kernel(x, y).mean()))
    return float(np.mean(found)), float(np.std(found, ddof=1))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
