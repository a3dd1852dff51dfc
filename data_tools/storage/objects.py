"""Reads from http(s) and from everything fsspec opens (S3, GCS, Azure, HF), with patience and hedges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, describe_place
from data_tools.storage.background import refuse_when_stopped
from data_tools.storage.hedging import read_hedged
from data_tools.storage.http import read_http_blocks, read_http_range, stat_http
from data_tools.storage.location import split_url
from data_tools.storage.options import AS_IT_IS, StorageOptions
from data_tools.storage.retry import (
    PATIENT,
    MissingError,
    NoRangesError,
    RefusedError,
    Retry,
    describe,
    with_retries,
)
from data_tools.storage.urls import has_secrets, is_http, is_remote, redact_urls, redacted

__all__ = [
    "PATIENT", "MissingError", "NoRangesError", "ObjectInfo", "RefusedError", "Retry", "StorageOptions",
    "describe_object", "has_secrets", "is_remote", "list_objects", "open_filesystem", "read_all", "read_range",
    "read_whole", "redact_urls", "redacted", "size_of", "with_retries",
]  # fmt: skip

BLOCK = 8 << 20
MAX_OBJECT_BYTES = 4 << 30
"""Bytes of the largest object that is read into memory at once: the manifest of 10⁷ shards is smaller."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object without sending it: its size in bytes, and a ``version`` that changes with it.

    The version is its ETag, else its time of change, else what fsspec's ``ukey`` says; "" where none is told.
    """

    size: int
    version: str


def read_range(url: str, offset: int, size: int, retry: Retry = PATIENT) -> bytes:
    """Bytes [offset, offset + size) of an object.

    Retries with exponential back-off and jitter, and asks twice where an answer takes unusually long. Fewer bytes are
    returned where the object ends, or where the server keeps sending less than it promised. Raises NoRangesError, and
    what `with_retries` raises.
    """
    best = b""
    shorts = 0
    kind = split_url(url).netloc.rpartition("@")[2], size.bit_length()

    def read() -> tuple[bytes, int]:
        if is_http(url):
            return read_http_range(url, offset, size, retry.timeout, retry.storage.headers)
        filesystem, path = open_filesystem(url, retry.storage)
        data: bytes = filesystem.cat_file(path, start=offset, end=offset + size)
        return data, len(data)

    def attempt() -> bytes:
        nonlocal best, shorts
        data, promised = read_hedged(read, kind)
        if len(data) > len(best):
            best = data
        if len(data) < promised:
            shorts += 1
            if shorts >= 4:  # it is the object that is short, not one unlucky connection
                return best
            raise ConnectionError(f"{len(data)} of {promised} bytes arrived")
        return data

    return with_retries(attempt, url, retry)


def read_whole(url: str, target: Path, retry: Retry = PATIENT) -> None:
    """Copy an object to a file (the caller renames it when this returns); retries as ``read_range`` does.

    Raises UserError where the file cannot be written.
    """

    def attempt() -> None:
        with LocalFile(target) as file:
            for block in read_blocks(url, retry):
                file.write(block)

    with_retries(attempt, url, retry)


def read_all(url: str, retry: Retry = PATIENT, limit: int = MAX_OBJECT_BYTES) -> bytes:
    """A small object, such as a manifest; raises UserError for one of more than ``limit`` bytes."""

    def attempt() -> bytes:
        data = bytearray()
        for block in read_blocks(url, retry):
            data += block
            if len(data) > limit:
                raise UserError(
                    f"{redacted(url)}: has more than {limit:,} bytes; no manifest or sidecar is so large"
                )
        return bytes(data)

    return with_retries(attempt, url, retry)


def read_blocks(url: str, retry: Retry) -> Iterator[bytes]:
    """An object from its beginning to its end, tried once."""
    if is_http(url):
        yield from read_http_blocks(url, retry.timeout, retry.storage.headers)
        return
    filesystem, path = open_filesystem(url, retry.storage)
    with filesystem.open(path, "rb") as source:
        while block := source.read(BLOCK):
            refuse_when_stopped()
            yield block


class LocalFile:
    """A file of this machine: that it cannot be written is no fault of the object that is read, and does not pass."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> LocalFile:
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise UserError(describe_place(error)) from None
        return self

    def write(self, block: bytes) -> None:
        """Raises UserError where it cannot be written."""
        try:
            self._file.write(block)
        except OSError as error:
            raise UserError(describe_place(error)) from None

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()  # which writes what is buffered
        except OSError as error:
            raise UserError(describe_place(error)) from None


def describe_object(url: str, retry: Retry = PATIENT) -> ObjectInfo:
    """Size and version of an object as it is now. Raises what `with_retries` raises."""

    def attempt() -> ObjectInfo:
        if is_http(url):
            return ObjectInfo(*stat_http(url, retry.timeout, retry.storage.headers))
        filesystem, path = open_filesystem(url, retry.storage)
        filesystem.invalidate_cache()
        said = filesystem.info(path)
        told = (said.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime"))
        return ObjectInfo(int(said["size"]), str(next(filter(None, told), None) or filesystem.ukey(path)))

    return with_retries(attempt, url, retry)


def size_of(url: str, retry: Retry = PATIENT) -> int:
    """Bytes of an object. Raises what `with_retries` raises."""
    return describe_object(url, retry).size


def list_objects(url: str, retry: Retry = PATIENT) -> list[str]:
    """URLs of all objects that lie in a folder or below, or that a pattern names (``s3://bucket/*.tar``), sorted.

    Raises UserError for http(s), which has no way to list; and what `with_retries` raises.
    """
    if is_http(url):
        raise UserError(
            f"{redacted(url)}: an http server does not list its files; name them, {{000000..000099}} for many"
        )

    def attempt() -> list[str]:
        filesystem, path = open_filesystem(url, retry.storage)
        filesystem.invalidate_cache()
        found = filesystem.glob(path) if "*" in path else filesystem.find(path)
        return sorted(str(filesystem.unstrip_protocol(name)) for name in found)

    return with_retries(attempt, url, retry)


def open_filesystem(url: str, storage: StorageOptions = AS_IT_IS) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it. Raises UserError where there is none for it."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{redacted(url)}: needs fsspec; `pip install masquerade[remote]`") from None
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **storage.for_filesystem(url.partition("://")[0]))
    except (ImportError, ValueError, TypeError) as error:
        raise UserError(f"{redacted(url)}: fsspec cannot open it ({describe(error)})") from None
    return filesystem, path
