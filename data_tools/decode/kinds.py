"""Which kind of data an extension stands for, and the field that a member becomes."""

from __future__ import annotations

from functools import lru_cache

from data_tools.errors import UserError

# Where a sample has several members of a kind, the first here is the field of that name: of a photograph and the mask
# that lies beside it (jpg and png, the usual pair) the photograph.
_PREFERRED = {
    "image": (
        "jpg", "jpeg", "jpe", "jfif", "heic", "heif", "avif", "webp", "jp2", "j2k", "png", "tif", "tiff", "bmp",
        "ppm", "pgm", "pbm", "gif",
    ),
    "audio": ("flac", "wav", "ogg", "mp3"),
    "video": ("mp4", "mkv", "webm", "avi", "mov"),
    "text": ("txt", "text"),
    "label": ("cls",),
    "json": ("json",),
    "array": ("npy",),
}  # fmt: skip
_KINDS = {extension: kind for kind, extensions in _PREFERRED.items() for extension in extensions}

IMAGE_EXTENSIONS = frozenset(_PREFERRED["image"])

# Formats whose readers run code from the file. Refused wherever they turn up, never merely skipped.
PICKLE_EXTENSIONS = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib"})


def kind_of(extension: str) -> str | None:
    """The field that a member of this (possibly dotted) extension becomes; None stays bytes."""
    if extension == "tokens.npy":
        return "tokens"
    last = extension.rsplit(".", 1)[-1].lower()
    if last in PICKLE_EXTENSIONS:
        raise UserError(
            f".{extension} member: pickle can run code and is refused; repack the data without it"
        )
    return _KINDS.get(last)


@lru_cache(maxsize=4096)
def field_names(extensions: tuple[str, ...]) -> dict[str, str]:
    """Extension → field name: the kind; where several members are of one, the preferred one's, if it has no dot.

    The others go by their full extension, and so do all of a kind where each has a dot (``left.png``, ``right.png``).
    """
    kinds = {extension: kind_of(extension) for extension in extensions}
    of_kind: dict[str | None, list[str]] = {}
    for extension, kind in kinds.items():
        of_kind.setdefault(kind, []).append(extension)
    chosen = {kind: _choose(kind, members) for kind, members in of_kind.items() if kind is not None}
    return {e: kind if kind is not None and chosen[kind] == e else e for e, kind in kinds.items()}


def _choose(kind: str, extensions: list[str]) -> str | None:
    if len(extensions) == 1:
        return extensions[0]
    return next((e for e in _PREFERRED.get(kind, ()) if e in extensions), None)
