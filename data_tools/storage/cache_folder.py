"""The folder for what is fetched, unpacked or computed once, and building in it; several users may share it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from data_tools.errors import UserError
from data_tools.storage.locks import locked

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")
"""What schedulers of clusters set for their jobs: Slurm, PBS, LSF, Grid Engine, Flux."""
SCRATCH_VARIABLES = ("SLURM_TMPDIR", "TMPDIR", "TMP")
"""What names a folder on the node's own disk, where somebody has set it."""


def cache_folder(chosen: Path | None = None) -> Path:
    """``chosen`` (the recipe's `data.storage.cache_folder`), else $MASQUERADE_CACHE, else a default.

    In a job of a cluster that is a folder of this user on the node's own disk ($SLURM_TMPDIR, $TMPDIR, /tmp), for home
    is mostly a network file system that all nodes share; elsewhere it is ~/.cache/masquerade, or where XDG_CACHE_HOME
    says.
    """
    named = chosen or os.environ.get("MASQUERADE_CACHE")
    if named:
        return Path(named).expanduser()
    return (
        scratch_folder()
        if any(name in os.environ for name in JOB_VARIABLES)
        else user_cache_path("masquerade")
    )


def scratch_folder() -> Path:
    """This user's folder on the disk of this node.

    Raises:
        UserError: somebody else has made a folder of that name.
    """
    places = [Path(os.environ[name]) for name in SCRATCH_VARIABLES if os.environ.get(name)]
    place = next((place for place in places if os.access(place, os.W_OK)), Path(tempfile.gettempdir()))
    folder = place / f"masquerade-{os.getuid()}"
    with suppress(OSError):  # whoever writes there meets it again, and says so
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise UserError(f"{folder}: is another user's; set MASQUERADE_CACHE to a folder of yours")
    return folder


def share(path: Path) -> None:
    """Let those write to a file or folder of the cache who may write to the folder that it lies in.

    So several users share a cache if its first folder lets them (`chmod g+ws`), whatever their umask is. A folder in
    which everybody may remove only what is theirs (/tmp) lets nobody.
    """
    with suppress(OSError):  # another user's, who has done it
        above, mode = path.parent.stat().st_mode, path.stat().st_mode
        if above & stat.S_ISVTX:
            return
        rights = 7 if path.is_dir() else 6
        allowed = rights << 3 if above & stat.S_IWGRP else 0
        allowed |= rights if above & stat.S_IWOTH else 0
        allowed |= above & stat.S_ISGID if path.is_dir() else 0
        if allowed & ~mode:
            path.chmod(stat.S_IMODE(mode) | allowed)


def make_shared_folder(folder: Path) -> None:
    """Make a folder of the cache, and those above it, for all who may write above them.

    Raises:
        UserError: it cannot be made.
    """
    if folder.is_dir():
        return
    with cache_errors(folder):
        first = next(place for place in folder.parents if place.exists())
        folder.mkdir(parents=True, exist_ok=True)
        for place in reversed(
            [folder, *(p for p in folder.parents if p.is_relative_to(first) and p != first)]
        ):
            share(place)


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Within it, what goes wrong with the cache's files is a `UserError` with the remedy: the data are not to blame."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(
            f"{error.filename or folder}: the cache cannot be used ({reason}); set MASQUERADE_CACHE (or "
            "data.storage.cache_folder) to a folder of yours with room in it, or let its users share it: chmod -R g+ws"
        ) from None


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``build(temporary folder)`` unless it exists; it appears whole or not at all.

    Of several processes that ask at once, one builds and the others wait for it. Where the file system has no locks
    all of them build, and the first to finish wins.

    Raises:
        UserError: the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    make_shared_folder(folder.parent)
    lock = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as held:
        with cache_errors(folder):
            held.enter_context(locked(lock))
            share(lock)
            if folder.is_dir():  # another process has built it meanwhile
                return folder
            temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
            temporary.mkdir()
        try:
            build(temporary)
            for path in (temporary, *sorted(temporary.rglob("*"))):  # a folder before what lies in it
                share(path)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
            with suppress(PermissionError):  # another user's
                lock.unlink(missing_ok=True)  # whoever waits for it, or comes later, finds the folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
