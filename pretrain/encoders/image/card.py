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
NOTES = (
    "The processor resizes the short side, crops the centre and normalises, exactly as in training for 8-bit pictures "
    "on the Pillow back-end (torchvision's resizing differs by a few grey levels); pictures of 16 bit are to be scaled "
    "to 8 bit first, and transparent ones to be laid on the background that training had (white unless it was set)."
)


def image_code(pooling: str, channels: int, options: str) -> str:
    """Code that gives the pooled features of one picture, with nothing but `transformers`.

    Args:
        pooling: an expression of `tokens`.
        options: further arguments of `AutoModel.from_pretrained`, each after a comma.
    """
    return CODE.format(options=options, pooling=pooling, mode="L" if channels == 1 else "RGB")
