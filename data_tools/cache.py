"""Where unpacked samples, indexes of others' tars and fetched chunks are kept: $MASQUERADE_CACHE or ~/.cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    chosen = os.environ.get("MASQUERADE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "masquerade"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``build(temporary folder)`` unless it exists; it appears whole or not at all.

    Several processes may do so at once: the first to finish wins, the others drop their copy.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
