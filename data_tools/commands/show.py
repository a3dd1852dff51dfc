"""A look at the data: a contact sheet of images and spectrograms, excerpts of text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools.decode.pixels import lay_on
from data_tools.decode.sample import Sample
from data_tools.errors import one_line

TILE = 112  # pixels
CAPTION = 14
FONT_SIZE = 10
EXCERPT = 300  # characters


def contact_sheet(samples: list[Sample], classes: list[str] | None = None) -> Image.Image | None:
    """A grid of tiles with captions; None when no sample has an image, audio or video."""
    tiles = [(picture, caption(s, classes)) for s in samples if (picture := _picture(s)) is not None]
    if not tiles:
        return None
    columns = max(1, round(math.sqrt(len(tiles) * 1.2)))
    rows = -(-len(tiles) // columns)
    gap, step_x, step_y = 6, TILE + 6, TILE + CAPTION + 6
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = load_font()
    for i, (picture, text) in enumerate(tiles):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        tile = _fit(picture)
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        shown = next(text[:n] for n in range(len(text), -1, -1) if draw.textlength(text[:n]) <= TILE)
        draw.text((x, y + TILE), shown, fill="black")
    return sheet


def load_font() -> ImageFont.FreeTypeFont:
    """A font with the letters of most languages; Pillow's own has English ones."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)


def _fit(picture: Image.Image) -> Image.Image:
    """Shrunk to a tile; small pictures grow by whole factors, so that pixels stay square."""
    picture.thumbnail((TILE, TILE))
    scale = TILE // max(picture.size)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def caption(sample: Sample, classes: list[str] | None = None) -> str:
    """The label (by name where known), else the first short value of the JSON, else the key."""
    label = sample.get("label")
    if isinstance(label, int):
        return classes[label] if classes and label < len(classes) else str(label)
    about = sample.get("json")
    if isinstance(about, dict):
        values = [str(v) for v in about.values() if isinstance(v, str | int | float)]
        if values:
            return " · ".join(values)
    return str(sample["__key__"])


def excerpt(sample: Sample, classes: list[str] | None = None) -> str:
    """One paragraph: key, what is said about the sample, and the beginning of its text or tokens."""
    text = sample.get("text")
    if text is None and "tokens" in sample:
        text = " ".join(map(str, sample["tokens"][: EXCERPT // 5].tolist()))
    shown = one_line((text or "")[:EXCERPT].replace("\n", " ").replace("\t", " "))
    more = "…" if text and len(text) > EXCERPT else ""
    return f"[{one_line(sample['__key__'])}] {one_line(caption(sample, classes))}\n  {shown}{more}"


def _picture(sample: Sample) -> Image.Image | None:
    arrays = [v for k, v in sample.items() if isinstance(v, np.ndarray) and k not in ("tokens", "array")]
    if "audio" in sample:
        return Image.fromarray(spectrogram(sample["audio"].mean(1)))
    if not arrays:
        return None
    array: Any = arrays[0]
    if array.ndim == 4:
        array = array[len(array) // 2]  # the middle frame of a video
    array = lay_on(_as_bytes(array))
    array = array[:, :, :3] if array.shape[2] >= 3 else array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) as uint8; of 32 bits or floats, which do not say what white is, from least to most."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array / 257).astype(np.uint8)
    values = np.nan_to_num(array.astype(np.float64))
    spread = float(np.ptp(values)) or 1.0
    return ((values - values.min()) / spread * 255).astype(np.uint8)


def spectrogram(audio: np.ndarray, window: int = 256, hop: int = 64) -> np.ndarray:
    """Log-magnitude short-time Fourier transform of mono audio (T,) as uint8 (frequency, time), low at the end."""
    padded = np.pad(audio, (0, max(0, window - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)) + 1e-6).T[::-1]  # (window / 2 + 1, time)
    top = decibels.max()
    return (np.clip((decibels - top + 80) / 80, 0, 1) * 255).astype(
        np.uint8
    )  # 80 dB below the loudest is black
