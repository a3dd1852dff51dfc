"""Code and notes on the model card of an image encoder."""

from __future__ import annotations

CODE = """\
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

folder = "."  # where this file lies
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder{options}).eval()
image = ImageOps.exif_transpose(Image.open("picture.png")).convert("{mode}")
with torch.no_grad():
    tokens = model(**processor(image, return_tensors="pt")).last_hidden_state
features = {pooling}
"""
MANY_CHANNELS_CODE = """\
import json

import torch
from transformers import AutoModel

folder = "."  # where this file lies
with open(f"{{folder}}/preprocessor_config.json") as file:
    scale = json.load(file)
mean, std = (torch.tensor(scale[name]).view(1, -1, 1, 1) for name in ("image_mean", "image_std"))
model = AutoModel.from_pretrained(folder{options}).eval()
image = torch.rand(1, {channels}, {rows}, {columns})  # a picture of this size, with white at 1
with torch.no_grad():
    tokens = model((image - mean) / std).last_hidden_state
features = {pooling}
"""
"""Pillow has no pictures of more than four channels."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What Pillow calls pictures, by their number of channels."""
NOTES = (
    "The processor resizes the short side, crops the centre and normalises, exactly as in training for 8-bit pictures "
    "on the Pillow back-end (torchvision's resizing differs by a few grey levels); pictures of 16 bit are to be scaled "
    "to 8 bit first, and transparent ones to be laid on the background that training had (white unless it was set)."
)


def image_code(pooling: str, channels: int, sizes: tuple[int, int], options: str) -> str:
    """Code that gives the pooled features of one picture, with nothing but `transformers`.

    Args:
        pooling: an expression of `tokens`.
        sizes: (rows, columns) that the encoder sees.
        options: further arguments of `AutoModel.from_pretrained`, each after a comma.
    """
    if channels in MODES:
        return CODE.format(options=options, pooling=pooling, mode=MODES[channels])
    rows, columns = sizes
    return MANY_CHANNELS_CODE.format(
        options=options, pooling=pooling, channels=channels, rows=rows, columns=columns
    )
