"""Which shards a user's words mean, and which bytes those are."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_tools.dataset.shard_files import TARS, choose_shards
from data_tools.errors import UserError
from data_tools.storage.folders import walk_folder
from data_tools.storage.location import location_of, name_ends
from data_tools.storage.objects import (
    PATIENT,
    MissingError,
    ObjectInfo,
    Retry,
    describe_object,
    is_remote,
    list_objects,
    redacted,
)
from data_tools.storage.staging import describe_unfinished

log = logging.getLogger(__name__)

_ASKED_AT_ONCE = 32


def find_tars(source: str, endings: tuple[str, ...] = TARS, retry: Retry = PATIENT) -> list[str]:
    """The tars that a folder, a prefix of an object store, a glob, or the path or URL of one of them names, sorted.

    Hidden files and folders are left out; what else looks like a tar and is not used is told. None found is an empty
    list.

    Raises:
        UserError: the folder is packed in part only, or the store cannot be asked.
    """
    if is_remote(source):
        return [source] if name_ends(source, TARS) else _list_tars(source, endings, retry)
    path = Path(source).expanduser()
    if not path.is_dir():
        return [str(path)] if path.is_file() else sorted(glob.glob(str(path)))  # noqa: PTH207
    if (unfinished := describe_unfinished(path)) is not None:
        raise UserError(f"{path}: {unfinished}")
    walk = walk_folder(path)
    _refuse_absent(walk.passed_over)
    return _leave_out_links(_choose(map(str, walk.files), endings))


def _choose(names: Iterable[str], endings: tuple[str, ...]) -> list[str]:
    """The shards among names, sorted; a warning says what is left out."""
    used, left_out = choose_shards(names, endings)
    for name, why in left_out:
        log.warning("%s: left out: %s", redacted(name), why)
    return used


def _refuse_absent(passed_over: Iterable[tuple[Path, str]]) -> None:
    """Raise UserError where shards are away: a run must not go on with those that are left.

    A broken link that may be of a folder of shards is told.
    """
    for path, reason in passed_over:
        broken = reason.startswith("broken link")
        if reason.startswith("cannot be opened") or (broken and path.name.lower().endswith(TARS)):
            raise UserError(f"{path}: {reason}; mount what is away, or take it out of the folder")
        if broken and not path.suffix:
            log.warning("%s: left out: %s", path, reason)


def _leave_out_links(tars: list[str]) -> list[str]:
    """Without links to tars that are among them, whose samples would count twice; a warning says so."""
    places = {name: os.path.realpath(name) for name in tars}
    first: dict[str, str] = {}
    for name in sorted(tars, key=lambda name: Path(name).is_symlink()):
        first.setdefault(places[name], name)
    for name in tars:
        if first[places[name]] != name:
            log.warning("%s: left out: a link to %s, which is read anyway", name, first[places[name]])
    return [name for name in tars if first[places[name]] == name]


def _list_tars(prefix: str, endings: tuple[str, ...], retry: Retry) -> list[str]:
    try:
        names = list_objects(prefix, retry)
    except MissingError as error:
        raise UserError(f"{error}: there is no such place; check the URL") from None
    base = prefix.rstrip("/")
    below = f"{_bare(base)}/"
    tars = []
    for name in names:
        relative = _bare(name).removeprefix(below)
        if not any(part.startswith(".") for part in relative.split("/")):
            tars.append(f"{base}/{relative}" if _bare(name).startswith(below) else name)
    return _choose(tars, endings)


def _bare(url: str) -> str:
    """A URL as its listings may write it too: memory:///bucket and memory://bucket are one place."""
    return url.partition("://")[2].lstrip("/")


def identify(names: Iterable[str], retry: Retry = PATIENT) -> list[str]:
    """For each path or URL a text that changes when the file or object does, and with nothing else.

    It is made of the location, without password and signature, of the size, and of the time of change or of what the
    store says: its ETag, Last-Modified, `ukey`. A fresh signature gives the same text.

    Raises:
        UserError: one of them is not there.
    """
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(lambda name: _identify_one(name, retry), names))


def _identify_one(name: str, retry: Retry) -> str:
    if is_remote(name):
        said = describe_shard(name, retry)
        return f"{location_of(name)}\0{said.size}\0{said.version}"
    try:
        status = Path(name).stat()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); check the path") from None
    return f"{Path(name).resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


def describe_shard(url: str, retry: Retry = PATIENT) -> ObjectInfo:
    """Size and version of a remote shard; raises UserError where there is none."""
    try:
        return describe_object(url, retry)
    except MissingError as error:
        raise UserError(f"{error}: cannot be read; check the URL") from None


def describe_shards(urls: Sequence[str], retry: Retry = PATIENT) -> list[ObjectInfo | None]:
    """Size and version of many remote shards, asked for together; None for one that is not there."""

    def ask(url: str) -> ObjectInfo | None:
        try:
            return describe_object(url, retry)
        except MissingError:
            return None

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(ask, urls))


def refuse_secrets(name: str) -> None:
    """Raise UserError where a password or signature stands in a URL that is to be written into a manifest."""
    if location_of(name) != name:
        raise UserError(
            f"{location_of(name)}: comes with a password or signature, which a manifest would keep and which expires; "
            "give credentials in the store's own way (S3: environment or profile, http: ~/.netrc), or name such URLs "
            "where data are asked for: their index is kept in the cache"
        )
