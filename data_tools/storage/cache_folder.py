"""The cache folder ($MASQUERADE_CACHE or ~/.cache/masquerade), and what is built in it once."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_tools.errors import UserError
from data_tools.storage.locks import locked


def cache_folder() -> Path:
    chosen = os.environ.get("MASQUERADE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "masquerade"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``build(temporary folder)`` unless it exists; it appears whole or not at all.

    Of several processes that ask at once, one builds and the others wait for it. Where the file system has no locks
    all of them build, and the first to finish wins.

    Raises:
        UserError: the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    lock = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock))
            if folder.is_dir():  # another process has built it meanwhile
                return folder
            temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
            temporary.mkdir()
        except OSError as error:
            raise UserError(
                f"{cache_folder()}: the cache cannot be written ({error.strerror}); "
                "set MASQUERADE_CACHE to a folder that can"
            ) from None
        try:
            build(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
            lock.unlink(missing_ok=True)  # whoever waits for it, or comes later, finds the folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
