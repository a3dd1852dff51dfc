"""Which kind of data an extension stands for, and the field that a member becomes."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from data_tools.errors import UserError

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "tif", "tiff", "gif"})

AUDIO_EXTENSIONS = frozenset({"flac", "wav", "ogg", "mp3"})

VIDEO_EXTENSIONS = frozenset({"mp4", "mkv", "webm", "avi", "mov"})

# Formats whose readers run code from the file. Refused wherever they turn up, never merely skipped.
PICKLE_EXTENSIONS = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib"})

_OTHER = {"txt": "text", "text": "text", "cls": "label", "json": "json", "npy": "array"}


def kind_of(extension: str) -> str | None:
    """The field that a member of this (possibly dotted) extension becomes; None stays bytes."""
    if extension == "tokens.npy":
        return "tokens"
    last = extension.rsplit(".", 1)[-1]
    if last in PICKLE_EXTENSIONS:
        raise UserError(
            f".{extension} member: pickle can run code and is refused; repack the data without it"
        )
    if last in IMAGE_EXTENSIONS:
        return "image"
    if last in AUDIO_EXTENSIONS:
        return "audio"
    if last in VIDEO_EXTENSIONS:
        return "video"
    return _OTHER.get(last)


@lru_cache(maxsize=4096)
def field_names(extensions: tuple[str, ...]) -> dict[str, str]:
    """Extension → field name: the kind, or the full extension where two members are of one kind."""
    kinds = {extension: kind_of(extension) for extension in extensions}
    often = Counter(kinds.values())
    return {e: e if kind is None or often[kind] > 1 else kind for e, kind in kinds.items()}
