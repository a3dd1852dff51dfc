"""Range reads from http(s) and from everything fsspec opens (S3, GCS, Azure, HF), with retries."""

from __future__ import annotations

import http.client
import logging
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_tools.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_OBJECT_BYTES = 2 << 30
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class MissingError(OSError):
    """The object is not there, or may not be read; trying again would not help."""


class NoRangesError(OSError):
    """The server sends whole objects only."""


@dataclass(frozen=True)
class Retry:
    """How long an outage is waited for: ``patience`` seconds in all, ``timeout`` seconds without a byte."""

    patience: float = 300.0
    timeout: float = 30.0
    first_wait: float = 0.5
    longest_wait: float = 30.0


PATIENT = Retry()


def is_remote(url: str) -> bool:
    return "://" in url


def redacted(url: str) -> str:
    """The URL without the secrets that may stand in it: user, password, query (signatures)."""
    return re.sub(r"//[^/@]*@", "//", url).split("?")[0]


def has_secrets(url: str) -> bool:
    """Whether a password, key or signature may stand in the URL."""
    return is_remote(url) and ("?" in url or re.search(r"//[^/@]*:[^/@]*@", url) is not None)


def read_range(url: str, offset: int, size: int, retry: Retry = Retry()) -> bytes:
    """Bytes [offset, offset + size) of an object.

    Retries with exponential back-off and jitter. Fewer bytes are returned where the object ends, or where the server
    keeps sending less than it promised. Raises MissingError, NoRangesError, or UserError after ``patience``.
    """
    best = b""
    shorts = 0

    def attempt() -> bytes:
        nonlocal best, shorts
        data, promised = (
            _http_range(url, offset, size, retry) if _is_http(url) else _fsspec_range(url, offset, size)
        )
        if len(data) > len(best):
            best = data
        if len(data) < promised:
            shorts += 1
            if shorts >= 4:  # it is the object that is short, not one unlucky connection
                return best
            raise ConnectionError(f"{len(data)} of {promised} bytes arrived")
        return data

    return with_retries(attempt, url, retry)


def with_retries(attempt: Callable[[], T], url: str, retry: Retry) -> T:
    """The result of ``attempt``, tried again after passing errors for at most ``patience`` seconds."""
    deadline = time.monotonic() + retry.patience
    wait = retry.first_wait
    while True:
        try:
            return attempt()
        except (MissingError, NoRangesError, UserError, MemoryError):
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise MissingError(f"{redacted(url)}: {type(error).__name__}") from None
        except Exception as error:  # each storage library has errors of its own; those that pass are the rule
            pause = wait * random.uniform(0.5, 1.0)  # jitter: a thousand clients must not return at once
            if time.monotonic() + pause > deadline:
                reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
                raise UserError(
                    f"{redacted(url)}: no answer for {retry.patience:.0f} s ({reason}); check server and network"
                ) from None
            log.warning("%s: %s; trying again in %.1f s", redacted(url), type(error).__name__, pause)
            time.sleep(pause)
            wait = min(2 * wait, retry.longest_wait)


def read_whole(url: str, target: Path, retry: Retry = Retry()) -> None:
    """Copy an object to a file (the caller renames it when this returns); retries as ``read_range`` does."""

    def attempt() -> None:
        with _open(url, retry) as source, target.open("wb") as file:
            promised = int(source.headers.get("Content-Length") or -1) if _is_http(url) else -1
            while block := source.read(8 << 20):
                file.write(block)
            if 0 <= promised != file.tell():
                raise ConnectionError(f"{file.tell()} of {promised} bytes arrived")

    with_retries(attempt, url, retry)


def read_all(url: str, retry: Retry = Retry(), limit: int = MAX_OBJECT_BYTES) -> bytes:
    """A small object, such as a manifest. Raises UserError where it has more than ``limit`` bytes."""

    def attempt() -> bytes:
        with _open(url, retry) as source:
            data: bytes = source.read(limit + 1)
        if len(data) > limit:
            raise UserError(
                f"{redacted(url)}: has more than {limit:,} bytes; no manifest or sidecar is so large"
            )
        return data

    return with_retries(attempt, url, retry)


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object without sending it: its size in bytes, and a ``version`` that changes with it.

    The version is its ETag, else its time of change, else what fsspec's ``ukey`` says; "" where none is told.
    """

    size: int
    version: str


def describe_object(url: str, retry: Retry = Retry()) -> ObjectInfo:
    """Size and version of an object. Raises MissingError where there is none, UserError after ``patience``."""

    def attempt() -> ObjectInfo:
        return _http_stat(url, retry) if _is_http(url) else _fsspec_stat(url)

    return with_retries(attempt, url, retry)


def size_of(url: str, retry: Retry = Retry()) -> int:
    """Bytes of an object."""
    return describe_object(url, retry).size


def list_objects(url: str, retry: Retry = Retry()) -> list[str]:
    """URLs of all objects that lie in a folder or below, sorted. Raises UserError for http(s), which cannot list."""
    if _is_http(url):
        raise UserError(f"{redacted(url)}: an http server does not list its files; name them")

    def attempt() -> list[str]:
        filesystem, path = open_filesystem(url)
        filesystem.invalidate_cache()
        return sorted(str(filesystem.unstrip_protocol(name)) for name in filesystem.find(path))

    return with_retries(attempt, url, retry)


def _http_stat(url: str, retry: Retry) -> ObjectInfo:
    """By HEAD; by a read of one byte where the URL is signed for reading alone."""
    try:
        response = _request(urllib.request.Request(url, method="HEAD"), retry)
    except MissingError as error:
        if not any(f"HTTP {code}" in str(error) for code in (401, 403, 405, 501)):
            raise
        response = _request(urllib.request.Request(url, headers={"Range": "bytes=0-0"}), retry)
    with response:
        said = response.headers
        whole = said.get("Content-Range", "").rpartition("/")[2] or said["Content-Length"]
        return ObjectInfo(int(whole), said.get("ETag") or said.get("Last-Modified") or "")


def _fsspec_stat(url: str) -> ObjectInfo:
    filesystem, path = open_filesystem(url)
    said = filesystem.info(path)
    named = (said[name] for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if said.get(name))
    return ObjectInfo(int(said["size"]), str(next(named, None) or filesystem.ukey(path)))


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _open(url: str, retry: Retry) -> Any:
    if _is_http(url):
        return _request(urllib.request.Request(url), retry)
    filesystem, path = open_filesystem(url)
    return filesystem.open(path, "rb")


def _request(request: urllib.request.Request, retry: Retry) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=retry.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _RETRIED_STATUS:
            raise ConnectionError(f"HTTP {error.code}") from None
        raise MissingError(f"{redacted(request.full_url)}: HTTP {error.code}") from None


def _http_range(url: str, offset: int, size: int, retry: Retry) -> tuple[bytes, int]:
    """(bytes that came, bytes that the server promised)."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
    try:
        response = _request(request, retry)
    except MissingError as error:
        if "HTTP 416" in str(error):  # the object ends before the range begins
            return b"", 0
        raise
    with response:
        if response.status != 206:
            raise NoRangesError(f"{redacted(url)}: the server ignores ranges")
        promised = min(size, int(response.headers.get("Content-Length") or size))
        try:
            return response.read(size), promised
        except http.client.IncompleteRead as error:
            return error.partial, promised


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it. Raises UserError where there is none for it."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{redacted(url)}: needs fsspec; `pip install masquerade[remote]`") from None
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{redacted(url)}: fsspec cannot open it ({error})") from None
    return filesystem, path


def _fsspec_range(url: str, offset: int, size: int) -> tuple[bytes, int]:
    filesystem, path = open_filesystem(url)
    data: bytes = filesystem.cat_file(path, start=offset, end=offset + size)
    return data, len(data)
