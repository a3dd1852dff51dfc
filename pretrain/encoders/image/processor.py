"""The image processor of a release: `preprocessor_config.json`, as `transformers.AutoImageProcessor` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from pretrain.ops.sizes import rows_and_columns

PROCESSOR_FILE = "preprocessor_config.json"
BILINEAR = 2
"""Pillow's number for it."""
DEFAULT_MEAN = DEFAULT_STD = 0.5
"""What `transformers` itself assumes of a ViT whose folder has no processor."""


def save_image_processor(config: Any, folder: Path) -> None:
    """Write what turns a picture into this encoder's input: size, crop, scale, mean and standard deviation.

    `ViTImageProcessor` does what `ImageEncoder.view` and `pixels` do: short side to the encoder's size, centre (or, for
    a size that is not square, all of the picture), normalise. It opens without torchvision, and takes grey pictures as
    one channel when nothing is converted to RGB.
    """
    channels, (rows, columns) = config.num_channels, rows_and_columns(config.image_size)
    mean, std = (list(v) * (channels if len(v) == 1 else 1) for v in (config.image_mean, config.image_std))
    whole = {"height": rows, "width": columns}
    values = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": rows} if rows == columns else whole,
        "resample": BILINEAR,
        "do_center_crop": rows == columns,
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (folder / PROCESSOR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def open_image_processor(folder: Path) -> Any:
    """`AutoImageProcessor` of a local folder.

    Raises:
        UserError: a `transformers` that opens none without torchvision (5.17 is one), and there is no torchvision.
    """
    from transformers import AutoImageProcessor, __version__

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise
        raise UserError(
            f"{folder}: transformers {__version__} opens image processors with torchvision only, which is not "
            "installed; upgrade transformers (5.23 needs none)"
        ) from None


def read_image_processor(folder: Path) -> dict[str, Any]:
    """What a folder says of its input: `image_mean`, `image_std`, and `image_size` where it says that.

    A folder without the file gets the values that `transformers` assumes then.
    """
    path = folder / PROCESSOR_FILE
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not values.get("do_normalize", True):
        return {"image_mean": (0.0,), "image_std": (1.0,)} | image_size(values)
    mean, std = values.get("image_mean", DEFAULT_MEAN), values.get("image_std", DEFAULT_STD)
    return {"image_mean": numbers(mean), "image_std": numbers(std)} | image_size(values)


def image_size(values: dict[str, Any]) -> dict[str, Any]:
    """{"image_size": side, or (rows, columns)} of what the processor delivers, or nothing."""
    for key in ("crop_size", "size"):
        size = values.get(key)
        if isinstance(size, int):
            return {"image_size": size}
        size = size or {}
        rows = int(size.get("height") or size.get("shortest_edge") or 0)
        columns = int(size.get("width") or rows)
        if rows:
            return {"image_size": rows if rows == columns else (rows, columns)}
    return {}


def numbers(value: float | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else (float(value),)
