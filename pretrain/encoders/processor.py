"""The image processor of a release: `preprocessor_config.json`, as `transformers.AutoImageProcessor` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_image_processor(config: Any, folder: Path) -> None:
    """Write what turns a picture into this encoder's input: size, scale, mean and standard deviation."""
    channels = config.num_channels
    mean, std = (list(v) * (channels if len(v) == 1 else 1) for v in (config.image_mean, config.image_std))
    values = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2))
