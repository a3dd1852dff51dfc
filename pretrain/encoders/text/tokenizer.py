"""The tokenizer that lies beside a data set or a model, opened as `transformers` opens it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""What a tokenizer's folder may hold, by the names that `transformers` gives its files."""


def find_tokenizer(dataset: Any) -> Path | None:
    """The folder with the tokenizer of a data set (where its manifest says) or of a model (beside the weights)."""
    folder = getattr(dataset, "folder", None)
    if folder is None:
        return None
    manifest = getattr(dataset, "manifest", None)
    named = manifest.about.get("tokenizer") if manifest is not None else None
    candidates = [folder / named] if named else [folder, folder / "tokenizer"]
    return next((c for c in candidates if any((c / name).is_file() for name in FILES)), None)


def open_tokenizer(folder: Path) -> Any:
    """`AutoTokenizer` of a local folder; never code from it, never the network.

    Raises:
        UserError: there is no tokenizer that can be opened.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"{folder}: no tokenizer that transformers opens ({' '.join(str(error).split())[:200]}); "
            "make one with `python -m data_tools tokenizer`"
        ) from None


def tokens_by_id(tokenizer: Any) -> list[str]:
    """The token of each id (V,) up to the largest, "" for an id that none has: vocabularies may have gaps."""
    size = max(tokenizer.get_vocab().values()) + 1
    return [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(size)))]


def bytes_of_tokens(tokenizer: Any) -> NDArray[np.int64] | None:
    """Bytes of text that each token of a byte-level tokenizer stands for (V,), 0 for special ones; None for others.

    Byte-level BPE writes each byte as one character of a table, and keeps all of them; WordPiece loses white space.
    """
    pieces = tokens_by_id(tokenizer)
    if not any(piece.startswith("Ġ") for piece in pieces):
        return None
    sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    for content, number in tokenizer.get_added_vocab().items():  # written as they are
        sizes[number] = len(content.encode())
    sizes[tokenizer.all_special_ids] = 0
    return sizes


def fingerprint_of(folder: Path | None) -> str | None:
    """What tells tokenizers apart: a hash of `tokenizer.json`, however it is laid out; None where there is none.

    Truncation and padding are left out: they are how it was last called, not which number a token has.
    """
    path = folder / "tokenizer.json" if folder else None
    if path is None or not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(
            f"{path}: cannot be read as JSON; make one with `python -m data_tools tokenizer`"
        ) from None
    kept = {key: value for key, value in values.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are, so that every version of `transformers` that read them still does."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
