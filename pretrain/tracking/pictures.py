"""What a model sees and makes, as pictures: a grid of images, or text whose parts are marked."""

from __future__ import annotations

import base64
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data_tools.storage.atomic import write_atomically

if TYPE_CHECKING:
    from pretrain.tracking.wandb import WandbLogger

CELL = 112  # pixels; smaller images are enlarged by a whole factor to about this
GAP = 6
BACKGROUND, INK = (255, 255, 255), (70, 76, 89)


SPAN_CSS = {
    "given": "color:#1f2430",
    "right": "background:#cdeee0;color:#00583f",
    "wrong": "background:#fbdcc9;color:#8f3400;text-decoration:line-through",
    "truth": "background:#e4e9f2;color:#3d4d6b",
    "generated": "background:#d7e8f8;color:#004a7f",
}
SPAN_KINDS = tuple(SPAN_CSS)


class Picture(ABC):
    """Something to look at. Each kind knows how it is kept, and what the report and W&B show of it."""

    suffix: ClassVar[str]
    """Of its files; two kinds have not the same."""

    @abstractmethod
    def encode(self) -> bytes:
        """The content of its file."""

    @abstractmethod
    def show_on_wandb(self, wandb: WandbLogger, step: int, path: Path, name: str) -> None:
        """Hand it over under a name, as the file `path` or otherwise; returns at once."""

    @staticmethod
    @abstractmethod
    def describe_file(path: Path) -> dict[str, Any]:
        """What `report.html` shows of a file of this kind.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """


@dataclass(frozen=True)
class ImageGrid(Picture):
    """Rows of images: title → (B, C, H, W), floats in [0, 1]."""

    suffix = ".png"
    rows: dict[str, Tensor]

    def encode(self) -> bytes:
        return png(self)

    def show_on_wandb(self, wandb: WandbLogger, step: int, path: Path, name: str) -> None:
        wandb.image(step, path, name)

    @staticmethod
    def describe_file(path: Path) -> dict[str, Any]:
        uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        return {"image": uri, "excerpts": None}


@dataclass(frozen=True)
class TextExcerpt:
    """One text in parts: (text, kind), kind one of `SPAN_KINDS`."""

    spans: list[tuple[str, str]]


@dataclass(frozen=True)
class TextExcerpts(Picture):
    """Several texts with their parts marked."""

    suffix = ".json"
    excerpts: list[TextExcerpt]

    def encode(self) -> bytes:
        return to_json(self)

    def show_on_wandb(self, wandb: WandbLogger, step: int, path: Path, name: str) -> None:
        wandb.html(step, text_html(self, SPAN_CSS.__getitem__), name)

    @staticmethod
    def describe_file(path: Path) -> dict[str, Any]:
        return {"image": None, "excerpts": [excerpt.spans for excerpt in load_text(path).excerpts]}


KINDS: dict[str, type[Picture]] = {kind.suffix: kind for kind in (ImageGrid, TextExcerpts)}
"""By the suffix of their files."""


def save_picture(picture: Picture, run_dir: Path, step: int, name: str = "") -> Path:
    """Write `pictures/step_00000500.png` (images) or `.json` (text), whole or not at all; a name follows the step."""
    folder = run_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}{f'_{name}' if name else ''}{picture.suffix}"
    write_atomically(path, picture.encode())
    return path


def png(grid: ImageGrid) -> bytes:
    """The grid as a PNG: a row of images under each other row, titles to the left."""
    buffer = io.BytesIO()
    draw_grid(grid).save(buffer, format="PNG")
    return buffer.getvalue()


def draw_grid(grid: ImageGrid) -> Image.Image:
    """Each image enlarged by a whole factor so that pixels stay visible, one row for each title."""
    rows = {title: [enlarge(to_rgb(image)) for image in images] for title, images in grid.rows.items()}
    font = ImageFont.load_default(size=15)
    gutter = 2 * GAP + max((round(font.getlength(title)) for title in rows), default=0) + GAP
    width = gutter + max((sum(image.shape[1] + GAP for image in row) for row in rows.values()), default=0)
    height = GAP + sum(max((image.shape[0] for image in row), default=0) + GAP for row in rows.values())
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for title, row in rows.items():
        row_height = max((image.shape[0] for image in row), default=0)
        draw.text((gutter - 2 * GAP, top + row_height / 2), title, fill=INK, font=font, anchor="rm")
        left = gutter
        for image in row:
            canvas.paste(Image.fromarray(image), (left, top))
            left += image.shape[1] + GAP
        top += row_height + GAP
    return canvas


def to_rgb(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1], any number of channels → (H, W, 3) uint8; what is not finite becomes black.

    One channel is grey, two are shown by their mean, of more than three the first three.
    """
    x = image.detach().float().cpu().nan_to_num(0.0, posinf=0.0, neginf=0.0)
    if x.shape[0] < 3:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    x = x[:3].clamp(0, 1).mul(255).round()  # (3, H, W)
    return x.byte().permute(1, 2, 0).contiguous().numpy()


def bar_chart(heights: Tensor, width: int = 448) -> Tensor:
    """Heights (K,) ≥ 0 as dark bars, the highest over the whole image: (1, `CELL`, about `width`), for an `ImageGrid`.

    More bars than `width` are drawn a pixel each.
    """
    values = heights.detach().float().cpu().nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    values = values.repeat_interleave(max(1, width // max(len(values), 1)))  # (W,)
    level = torch.arange(CELL, 0, -1).unsqueeze(1) / CELL  # (H, 1), from the top
    dark = level <= values / values.max().clamp(min=1e-12)  # (H, W)
    return torch.where(dark, 0.3, 0.95).unsqueeze(0)


def enlarge(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) repeated by the whole factor that brings the longer side near `CELL`."""
    factor = max(1, round(CELL / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def to_json(picture: TextExcerpts) -> bytes:
    """JSON that may stand inside HTML: no `<`, `>` or `&` in it."""
    for excerpt in picture.excerpts:
        for _, kind in excerpt.spans:
            assert kind in SPAN_KINDS, kind
    text = json.dumps({"excerpts": [e.spans for e in picture.excerpts]}, ensure_ascii=False, indent=1)
    escapes = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}
    return text.translate(escapes).encode("utf-8", errors="replace")


def load_text(path: Path) -> TextExcerpts:
    """Read what `save_picture` wrote for text."""
    excerpts = json.loads(path.read_text(encoding="utf-8"))["excerpts"]
    return TextExcerpts([TextExcerpt([(text, kind) for text, kind in spans]) for spans in excerpts])


def text_html(picture: TextExcerpts, style: Callable[[str], str]) -> str:
    """Paragraphs of coloured spans, escaped; `style` gives the CSS of a kind."""
    paragraphs = (
        "".join(f'<span style="{style(kind)}">{escape(text)}</span>' for text, kind in excerpt.spans)
        for excerpt in picture.excerpts
    )
    return "".join(f'<p style="white-space:pre-wrap">{paragraph}</p>' for paragraph in paragraphs)
