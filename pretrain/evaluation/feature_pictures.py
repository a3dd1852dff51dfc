"""What an encoder makes of samples, as pictures: a map, nearest neighbours, features of places, attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.errors import OneRankError, UserError, mistakes_of_one_rank
from pretrain.encoders.base import Encoder
from pretrain.encoders.image.base import ImageEncoder
from pretrain.encoders.patches import PatchEncoder
from pretrain.engine.base import Engine
from pretrain.evaluation.attention_maps import attention_to_patches, recorded_attention
from pretrain.objectives.base import Batch, Objective
from pretrain.tracking.pictures import CELL, ImageGrid, Picture, TextExcerpt, TextExcerpts
from pretrain.tracking.scatter import scatter

Array = NDArray[np.float64]
Samples = list[tuple[Dataset, int]]
SHOWN, NEIGHBOURS, HEADS = 8, 5, 4
"""Samples in a picture, others that are shown for each, and heads of an attention."""
ORDER = ("nearest", "second", "third", "fourth", "fifth")
LETTERS = 160
"""Of a text among its neighbours."""
FEWEST_PLACES = 4
"""A feature map with less has nothing to show."""


def draw_features(
    objective: Objective, engine: Engine, features: Array, samples: Samples, labels: list[Any]
) -> dict[str, Picture]:
    """Pictures by their names, on rank 0. Called on all ranks together, within `engine.evaluating`.

    Args:
        features: (N, D), pooled, of `samples`; none are drawn where one is not finite.
        labels: of the samples; None where one has none.
    """
    pictures: dict[str, Picture] = {}
    if not np.isfinite(features).all():
        return pictures
    shown = np.unique(np.linspace(0, len(samples) - 1, SHOWN).astype(int)).tolist()

    def draw() -> None:
        points, share = principal_components(features, 2)
        title = (
            f"first two principal components: {100 * share:.0f} % of the variance, {len(points):,} samples"
        )
        pictures["map"] = ImageGrid({"": scatter(points, labels, title).unsqueeze(0)})
        neighbours = draw_neighbours(objective.product_encoder, features, samples, shown)
        if neighbours is not None:
            pictures["neighbours"] = neighbours

    engine.on_main_process(draw)
    if isinstance(objective.product_encoder, ImageEncoder):
        pictures |= draw_places(objective, engine, [samples[place] for place in shown])
    return pictures


def principal_components(x: Array, count: int) -> tuple[Array, float]:
    """Features (N, D) → their first components (N, count), and the share of the variance that these have.

    A component's largest loading is positive, so that two calls agree in its sign; those that there are not are zero.
    """
    centred = x - x.mean(0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    components = (left * values * np.where(signs == 0, 1, signs))[:, :count]
    missing = count - components.shape[1]
    variance = np.square(values)
    share = float(variance[:count].sum() / variance.sum()) if variance.sum() > 0 else 1.0
    return np.pad(components, ((0, 0), (0, missing))), share


def find_neighbours(features: Array, queries: list[int], count: int) -> tuple[NDArray[np.int64], Array]:
    """The samples with the largest cosine to each query, itself left out: (Q, count), and those cosines."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    cosine = unit[queries] @ unit.T  # (Q, N)
    cosine[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(count, len(features) - 1)]
    return order, np.take_along_axis(cosine, order, axis=1)


def draw_neighbours(
    encoder: Encoder, features: Array, samples: Samples, queries: list[int]
) -> Picture | None:
    """Each query and its nearest: images in a column, texts under each other; None for samples of another kind."""
    order, cosine = find_neighbours(features, queries, NEIGHBOURS)
    if isinstance(encoder, ImageEncoder):
        columns = np.concatenate([np.array(queries)[:, None], order], axis=1)  # (Q, 1 + K)
        titles = ("query", *ORDER)
        return ImageGrid(
            {
                titles[row]: torch.stack([thumbnail(encoder, samples[place]) for place in places])
                for row, places in enumerate(columns.T.tolist())
            }
        )
    if encoder.modality != "text":
        return None
    excerpts = []
    for query, places, cosines in zip(queries, order.tolist(), cosine.tolist(), strict=True):
        spans = [("query", "truth"), (f" {excerpt(encoder, samples[query])}", "given")]
        for place, value in zip(places, cosines, strict=True):
            spans += [
                ("\n", "given"),
                (f"{value:.3f}", "truth"),
                (f" {excerpt(encoder, samples[place])}", "given"),
            ]
        excerpts.append(TextExcerpt(spans))
    return TextExcerpts(excerpts)


def thumbnail(encoder: ImageEncoder, sample: tuple[Dataset, int]) -> Tensor:
    """What the encoder sees of a sample, (C, h, w) in [0, 1], no larger than a cell; grey where it cannot be read."""
    dataset, index = sample
    try:
        image = torch.as_tensor(encoder.view(dataset[index])["image"]).unsqueeze(0)
    except (DamagedSampleError, IncompleteSampleError):
        return torch.full((1, CELL, CELL), 0.5)
    return shrink(as_shown(encoder, image.to(encoder.image_mean.device)))[0].cpu()


def as_shown(encoder: ImageEncoder, image: Tensor) -> Tensor:
    """Images (B, C, H, W) as they travel → in [0, 1]."""
    return encoder.displayable(encoder.pixels(image)).float()


def shrink(images: Tensor) -> Tensor:
    """(B, C, H, W), no side longer than a cell."""
    longest = max(images.shape[2:])
    if longest <= CELL:
        return images
    sides = [max(1, side * CELL // longest) for side in images.shape[2:]]
    return F.interpolate(images, sides, mode="area")


def excerpt(encoder: Encoder, sample: tuple[Dataset, int]) -> str:
    """The beginning of a text, in one line."""
    dataset, index = sample
    try:
        found = dataset[index]
    except (DamagedSampleError, IncompleteSampleError):
        return "(cannot be read)"
    text = found.get("text")
    if text is None:
        tokens = found["tokens"][:LETTERS].tolist()
        tokenizer: Any = getattr(encoder, "tokenizer", None)
        text = (
            " ".join(map(str, tokens))
            if tokenizer is None
            else tokenizer.decode(tokens, skip_special_tokens=True)
        )
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"


def draw_places(objective: Objective, engine: Engine, samples: Samples) -> dict[str, Picture]:
    """What is found at each place of a few images: `patches`, its features as a colour, and `attention` of ViTs.

    Nothing where the encoder has no map of them. Called on all ranks together, each with the same samples.
    """
    encoder: Any = objective.product_encoder
    grid = getattr(encoder, "token_grid", (1, 1))
    if prod(grid) < FEWEST_PLACES:
        return {}
    batch = view_all(objective, samples)
    nothing: AbstractContextManager[list[Tensor]] = nullcontext([])
    recording = recorded_attention(encoder) if isinstance(encoder, PatchEncoder) else nothing
    with mistakes_of_one_rank(), recording as weights:
        on_device = {name: value.to(engine.device) for name, value in batch.items()}
        tokens = objective.encode(on_device).tokens.float()  # (B, L, D)
    images = shrink(as_shown(encoder, on_device["image"]))
    sizes = (images.shape[2], images.shape[3])
    colours = colour_places(tokens[:, -prod(grid) :].cpu().numpy().astype(np.float64))  # (B, N, 3)
    rows = torch.from_numpy(colours).float().transpose(1, 2).unflatten(2, grid)  # (B, 3, h, w)
    pictures: dict[str, Picture] = {
        "patches": ImageGrid({"image": images, "features": enlarge_cells(rows, sizes)})
    }
    if weights and weights[0].shape[-1] == tokens.shape[1]:
        seen = attention_to_patches(weights[0], encoder.lead).unflatten(2, grid)  # (B, H, h, w)
        maps = {"all heads": seen.mean(1, keepdim=True)}
        maps |= {f"head {head + 1}": seen[:, head : head + 1] for head in range(min(HEADS, seen.shape[1]))}
        shown = {title: enlarge_cells(brighten(of_head), sizes) for title, of_head in maps.items()}
        pictures["attention"] = ImageGrid({"image": images, **shown})
    return pictures


def view_all(objective: Objective, samples: Samples) -> Batch:
    """Whole samples as a batch on the CPU; an error of this rank alone where one cannot be read any more."""
    try:
        return objective.collate([objective.view(dataset[index]) for dataset, index in samples])
    except (UserError, DamagedSampleError) as error:
        raise OneRankError(f"representation.pictures: {error}") from None


def colour_places(features: Array) -> Array:
    """Features of places (B, N, D) → colours (B, N, 3) in [0, 1]: their first three principal components over all
    images (as in Oquab et al. 2023, figure 1), each from its 2nd to its 98th percentile."""
    components, _ = principal_components(features.reshape(-1, features.shape[2]), 3)
    low, high = np.percentile(components, [2, 98], axis=0)
    return ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1).reshape(*features.shape[:2], 3)


def brighten(maps: Tensor) -> Tensor:
    """(B, C, h, w) ≥ 0, the largest value of each image at 1."""
    return maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)


def enlarge_cells(maps: Tensor, sizes: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, H, W), each cell one colour."""
    return F.interpolate(maps, sizes, mode="nearest-exact")
