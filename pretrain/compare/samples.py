"""The data of a comparison: what is pretrained on, what choices are made by, and what the end is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.commands.split import split
from data_tools.dataset.damage import IncompleteSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.objects import redacted
from pretrain.compare.options import Options
from pretrain.encoders.image.base import image_to_array, scale_bytes
from pretrain.evaluation.class_names import read_label
from pretrain.evaluation.probes import first

HELD_OUT = 0.4
"""Half of it chooses (who survives, which probe, how many steps), the other half judges at the end, once."""
LOOKED_AT = 256
"""Images whose size, channels and pixels are looked at."""
LARGEST = 64
"""Side of the images that demo-size encoders are given, at most."""
LEAST_STD = 0.05


@dataclass(frozen=True)
class Samples:
    """The three parts, as folders, and what they hold."""

    train: Path
    select: Path
    test: Path
    modality: str
    label: str
    image: ImageFacts | None


@dataclass(frozen=True)
class ImageFacts:
    """What an encoder of these images is told of them."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def prepare_samples(options: Options) -> Samples:
    """Split the data, once, and look at what they are.

    Raises:
        UserError: neither images nor texts, no labels, or too few to split.
    """
    train, held_out, select, test = (
        options.out / "data" / part for part in ("train", "held_out", "select", "test")
    )
    dataset, place = open_dataset(options.data), f"data={redacted(options.data)}"
    known = [name for name in ("image", "text", "tokens") if name in dataset.fields]
    if not known:
        raise UserError(
            f"{place}: its samples have neither image nor text; they have: {', '.join(dataset.fields)}"
        )
    try:
        read_label(dataset[0], options.label, f"label={options.label}")
    except IncompleteSampleError as error:
        raise UserError(
            f"{error}; name the field that holds the class, label=FIELD, or label=json.NAME"
        ) from None
    try:
        split_once(options, dataset, HELD_OUT, train, held_out)
        split_once(options, open_dataset(str(held_out)), 0.5, select, test)
    except UserError as error:
        raise UserError(f"{place}: cannot be split 60 : 20 : 20 ({error})") from None
    modality = "image" if "image" in known else "text"
    facts = look_at_images(open_dataset(str(train))) if modality == "image" else None
    return Samples(train, select, test, modality, options.label, facts)


def split_once(options: Options, dataset: Dataset, share: float, rest: Path, part: Path) -> None:
    """Put a share of each class into `part`, and the others into `rest`, where that has not been done."""
    if not (part / "manifest.json").exists():
        salt = f"compare {part.name} {options.seed}"
        split(dataset, share, rest, part, salt, options.group, options.group_key, options.label)


def look_at_images(dataset: Dataset) -> ImageFacts:
    """Size, channels, mean and deviation of some images; transparent pixels are white."""
    raw = [sample["image"] for sample in first(dataset, LOOKED_AT)]  # each (H, W, c)
    channels = 1 if all(image.shape[2] < 3 for image in raw) else 3
    side = min(LARGEST, int(np.median([min(image.shape[:2]) for image in raw])))
    pixels = np.concatenate([to_unit(image, channels).reshape(-1, channels) for image in raw])
    mean, std = pixels.mean(0), pixels.std(0).clip(LEAST_STD)
    return ImageFacts(side // 4 * 4 or side, channels, rounded(mean), rounded(std))


def to_unit(image: np.ndarray, channels: int) -> np.ndarray:
    """An image (H, W, c) as (H, W, channels), its values in [0, 1]."""
    converted = image_to_array(image, channels, "data")
    white = 65535 if converted.dtype == np.uint16 else 1
    return scale_bytes(converted) / np.float32(white)


def rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
