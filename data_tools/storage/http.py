"""Reads from http(s) servers, over connections that are kept open."""

from __future__ import annotations

import logging
import netrc
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import IncompleteRead, ProtocolError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry as RedirectsOnly
from urllib3.util import Timeout, make_headers

from data_tools.storage.background import refuse_when_stopped
from data_tools.storage.location import split_url
from data_tools.storage.retry import NoRangesError, StatusError
from data_tools.storage.urls import quoted, redacted, take_login

BLOCK = 1 << 20
CONNECTIONS = 64
"""Kept open for each server."""
NO_HEAD = frozenset({400, 401, 403, 405, 501})
"""Answers to a HEAD where a GET may do: a signature is for one method only."""
_FOLLOW = RedirectsOnly(total=None, connect=False, read=False, status=False, other=False, redirect=5)

logging.getLogger("urllib3").setLevel(logging.WARNING)  # below, it tells whole URLs, signatures included

_pools: dict[str, urllib3.PoolManager] = {}
_lock = threading.Lock()


def _forget_pools() -> None:
    """A forked process must not speak on its parent's connections."""
    global _lock  # noqa: PLW0603 - the parent's may be held
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_pools)


def pool_for(url: str) -> urllib3.PoolManager:
    """The process's connections for a URL: direct, or through the proxy that the environment names."""
    parts = split_url(url)
    proxy = "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme, "")
    with _lock:
        if proxy not in _pools:
            make = partial(urllib3.ProxyManager, proxy) if proxy else urllib3.PoolManager
            _pools[proxy] = make(num_pools=32, maxsize=CONNECTIONS)
        return _pools[proxy]


@lru_cache(maxsize=1)
def read_netrc() -> netrc.netrc | None:
    """The user's logins by host (~/.netrc, or what NETRC names), where there is such a file."""
    try:
        return netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return None


def headers_for(url: str, own: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """(the URL as it is sent, its headers): a login of the URL, or of ~/.netrc, becomes a header."""
    bare, login = take_login(url)
    headers = {"Accept-Encoding": "identity", **own}
    if not login and "authorization" not in {name.lower() for name in own} and (known := read_netrc()):
        found = known.authenticators(split_url(bare).hostname or "")
        login = f"{found[0]}:{found[2]}" if found else ""
    if login:
        headers |= make_headers(basic_auth=login)
    return quoted(bare), headers


@contextmanager
def answer(method: str, url: str, timeout: float, own: Mapping[str, str]) -> Iterator[BaseHTTPResponse]:
    """A response whose body is read within; the connection is kept where it was read to its end.

    Raises StatusError for an answer without the bytes that were asked for, with the wait that its Retry-After asks for.
    """
    target, headers = headers_for(url, own)
    response = pool_for(target).request(
        method, target, headers=headers, timeout=Timeout(timeout), retries=_FOLLOW, preload_content=False
    )
    try:
        if response.status not in (
            200,
            206,
        ):  # a redirect without a place, 204, 304: nothing that was asked for
            raise StatusError(response.status, wait_asked_for(response.headers.get("Retry-After", "")))
        yield response
    finally:
        if response.length_remaining == 0 or method == "HEAD":
            response.drain_conn()
        else:
            response.close()
        response.release_conn()


def wait_asked_for(value: str) -> float:
    """Seconds that a Retry-After asks for, given as such or as a date; 0 where it says nothing."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def read_http_range(
    url: str, offset: int, size: int, timeout: float, own: Mapping[str, str]
) -> tuple[bytes, int]:
    """(bytes that came, bytes that the server promised) of [offset, offset + size).

    Raises NoRangesError where the server sends the whole object instead; StatusError; ConnectionError for a range that
    was not asked for.
    """
    asked = {**own, "Range": f"bytes={offset}-{offset + size - 1}"}
    try:
        with answer("GET", url, timeout, asked) as response:
            if response.status != 206:
                raise NoRangesError(f"{redacted(url)}: the server ignores ranges")
            promised = promised_bytes(response, offset, size)
            return read_body(response, promised), promised
    except StatusError as error:
        if error.status == 416:  # the object ends before the range begins
            return b"", 0
        raise


def promised_bytes(response: BaseHTTPResponse, offset: int, size: int) -> int:
    """How many bytes of the range asked for a 206 brings; raises ConnectionError where it is another range."""
    told = response.headers.get("Content-Range", "")
    if told:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(?:\d+|\*)", told.strip())
        if not found or int(found[1]) != offset or not offset <= int(found[2]) < offset + size:
            raise ConnectionError(f"asked for bytes {offset}-{offset + size - 1}, the answer is {told!r}")
        return int(found[2]) - offset + 1
    if response.headers.get("Content-Type", "").startswith("multipart/"):
        raise ConnectionError("the answer holds several ranges, one was asked for")
    return min(size, int(response.headers.get("Content-Length") or size))


def read_body(response: BaseHTTPResponse, size: int) -> bytes:
    """At most ``size`` bytes; fewer where the connection ends before."""
    data = bytearray()
    try:
        while len(data) < size and (
            block := response.read(min(BLOCK, size - len(data)), decode_content=False)
        ):
            data += block
    except ProtocolError as error:
        if not isinstance(error.__cause__, IncompleteRead):
            raise
    return bytes(data)


def read_http_blocks(url: str, timeout: float, own: Mapping[str, str]) -> Iterator[bytes]:
    """A whole object in blocks; raises ConnectionError or StatusError when less of it comes than was promised."""
    with answer("GET", url, timeout, own) as response:
        while block := response.read(BLOCK, decode_content=False):
            refuse_when_stopped()
            yield block


def stat_http(url: str, timeout: float, own: Mapping[str, str]) -> tuple[int, str]:
    """(bytes, ETag or time of the last change) of an object, by HEAD, or by a GET of one byte where HEAD is refused."""
    try:
        with answer("HEAD", url, timeout, own) as response:
            if size := response.headers.get("Content-Length", ""):
                return int(size), version_of(response)
    except StatusError as error:
        if error.status not in NO_HEAD:
            raise
    with answer("GET", url, timeout, {**own, "Range": "bytes=0-0"}) as response:
        told = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = told if response.status == 206 else response.headers.get("Content-Length", "")
        if not size.isdigit():
            raise NoRangesError(f"{redacted(url)}: the server does not say how long it is")
        return int(size), version_of(response)


def version_of(response: BaseHTTPResponse) -> str:
    """What changes with the object: its ETag, else when it was changed; empty where the server tells neither."""
    return response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
