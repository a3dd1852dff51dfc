"""Where images should become views, by the workers or on the device: python -m benchmarks.augment

One process, the same images (RGB, 256 × 320 bytes) and the same draws in turns in one run. Time of the processor on the
host, for others may use the machine; on a GPU, time until it has ended, the copy to it included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_tools.stream.collate import collate
from pretrain.augment.config import AugmentConfig, ViewConfig
from pretrain.augment.image import random_resized_crop
from pretrain.augment.views import Augmentation, Views

HOST, DEVICE = AugmentConfig(on="host"), AugmentConfig(on="device")
SIMCLR = ViewConfig(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5)
DINO: dict[str, Any] = {"jitter": 0.8, "saturation": 0.2, "grey": 0.2}
PIPELINES = {
    "MAE: one crop of 224": Augmentation(image=Views(ViewConfig(crop_scale=(0.2, 1)), 224, 3)),
    "SimCLR: two views of 224": Augmentation(view=Views(SIMCLR, 224, 3, count=2)),
    "DINO: two crops of 224, eight of 96": Augmentation(
        first=Views(ViewConfig(crop_scale=(0.4, 1), blur=1, **DINO), 224, 3),
        second=Views(ViewConfig(crop_scale=(0.4, 1), blur=0.1, solarise=0.2, **DINO), 224, 3),
        local=Views(ViewConfig(crop_scale=(0.05, 0.4), blur=0.5, **DINO), 96, 3, count=8),
    ),
}


def make_images(count: int) -> list[np.ndarray]:
    """Coarse colours with noise: (256, 320, 3) bytes each."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 10, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(image).resize((320, 256))) for image in coarse])
    return list((smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


def on_host(augmentation: Augmentation, images: list[np.ndarray], config: AugmentConfig) -> dict[str, Any]:
    """What workers do of a batch: all of it (`HOST`), or the drawing."""
    examples = [
        augmentation.prepare(augmentation.draw(image, np.random.default_rng(i)), config)
        for i, image in enumerate(images)
    ]
    return collate(augmentation.pad(examples))


def with_pillow(images: list[np.ndarray]) -> dict[str, Any]:
    """The crops that MAE's workers make by Pillow, in bytes."""
    rngs = map(np.random.default_rng, range(len(images)))
    crops = [
        random_resized_crop(image, rng, 224, interpolation="bicubic")
        for image, rng in zip(images, rngs, strict=True)
    ]
    return collate([{"image": crop} for crop in crops])


def on_device(augmentation: Augmentation, batch: dict[str, Any], device: torch.device) -> None:
    """What the device does of a batch of whole images."""
    augmentation.make({name: value.to(device, non_blocking=True) for name, value in batch.items()})
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], images: int, device: torch.device) -> float:
    """For each image."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    work()
    return (clock() - begin) / images * 1e3


def kilobytes(batch: dict[str, Any]) -> float:
    """What travels to the device for each image."""
    return sum(value.nbytes for value in batch.values()) / len(next(iter(batch.values()))) / 1e3


def measure(
    augmentation: Augmentation, images: list[np.ndarray], repeats: int, device: torch.device
) -> list[float]:
    """Shortest times: all on the host; host's part and device's part where the device makes the views; what travels."""
    whole = on_host(augmentation, images, DEVICE)
    pinned = {name: value.pin_memory() if device.type == "cuda" else value for name, value in whole.items()}
    cpu, count = torch.device("cpu"), len(images)
    rounds = [
        (
            milliseconds(lambda: on_host(augmentation, images, HOST), count, cpu),
            milliseconds(lambda: on_host(augmentation, images, DEVICE), count, cpu),
            milliseconds(lambda: on_device(augmentation, pinned, device), count, device),
        )
        for _ in range(repeats + 1)
    ][1:]  # the first one warms up
    sizes = [kilobytes(on_host(augmentation, images, HOST)), kilobytes(whole)]
    return [*(min(column) for column in zip(*rounds, strict=True)), *sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table there too")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as each worker has
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU too"
    images = make_images(options.images)
    pillow = min(
        milliseconds(lambda: with_pillow(images), len(images), torch.device("cpu"))
        for _ in range(options.repeats)
    )
    lines = [
        f"# Images into views: by the workers or on the device (here: {name})",
        "",
        "| views | host: ms an image, one core | device: ms an image, the host's part | its own part | "
        "travel, host: kB an image | device |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| MAE: one crop of 224, by Pillow in bytes (its default) | {pillow:.2f} | | | {3 * 224**2 / 1e3:.0f} | |",
    ]
    for title, augmentation in PIPELINES.items():
        host, drawing, own, travels, whole = measure(augmentation, images, options.repeats, device)
        lines.append(f"| {title} | {host:.2f} | {drawing:.2f} | {own:.2f} | {travels:.0f} | {whole:.0f} |")
    lines += [
        "",
        f"RGB of 256 × 320 in batches of {len(images)}, one thread, torch {torch.__version__}; the shortest of "
        f"{options.repeats} each, in turns in one run. Decoding is not in it.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
