"""URLs of data: how they are written down, sent, and shown without the secrets that may stand in them."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_IN_TEXT = re.compile(
    r"(?P<scheme>\b[A-Za-z][\w+.-]*://)(?:[^\s/?#'\"]*@)?(?P<rest>[^\s?'\"]*)"
    r"(?:\?[^\s'\"]*?(?=[;:,.)\]]*(?:[\s'\"]|$)))?"
)
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_KEPT_IN_PATH = "/%:@!$&'()*+,;=~"
_KEPT_IN_QUERY = _KEPT_IN_PATH + "?[]"


def is_remote(url: str) -> bool:
    """Whether it is a URL, and no path of this machine."""
    return "://" in url


def is_http(url: str) -> bool:
    """Whether it is read by our own HTTP client, and not by fsspec."""
    return url[:8].lower().startswith(("http://", "https://"))


def redacted(url: str) -> str:
    """The URL without the secrets that may stand in it: user, password, query (signatures). A path as it is."""
    if not is_remote(url):
        return url
    return take_login(url.partition("?")[0])[0]


def redact_urls(text: str) -> str:
    """Free text, such as an error of a storage library, with every URL in it `redacted`."""
    return _IN_TEXT.sub(lambda found: found["scheme"] + found["rest"], text)


def has_secrets(url: str) -> bool:
    """Whether a password, key or signature may stand in the URL."""
    return is_remote(url) and ("?" in url or re.search(r"//[^/@]*:[^/@]*@", url) is not None)


def name_of(url: str) -> str:
    """A URL without its query, or a path: what ends in ``.tar`` where it is one."""
    return url.partition("?")[0] if is_http(url) else url


def join_url(base: str, name: str) -> str:
    """The object ``name`` (a path as the file system has it) in the folder ``base``, whose query it keeps."""
    place, mark, query = base.partition("?") if is_http(base) else (base, "", "")
    return (
        f"{place.rstrip('/')}/{quote(name, errors='surrogateescape') if is_http(base) else name}{mark}{query}"
    )


def parent_url(url: str, name: str) -> str:
    """The folder of a URL that may end in the file ``name``; a query stays."""
    place, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    return f"{place.removesuffix(name).rstrip('/')}{mark}{query}"


def quoted(url: str) -> str:
    """An http(s) URL as it is sent: what may not stand in one is escaped, and escapes that are there stay.

    A ``#`` is part of a name, for data have no fragments; so is a ``%`` that begins no escape.
    """
    place, mark, query = url.partition("?")
    scheme, _, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    path = _LONE_PERCENT.sub("%25", quote(path, safe=_KEPT_IN_PATH, errors="surrogateescape"))
    query = _LONE_PERCENT.sub("%25", quote(query, safe=_KEPT_IN_QUERY, errors="surrogateescape"))
    return f"{scheme}://{host}{slash}{path}{mark}{query}"


def take_login(url: str) -> tuple[str, str]:
    """(the URL without its login, ``user:password``), for `https://user:password@host/…`; the login may be empty."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    login, _, host = place.rpartition("@")
    return f"{scheme}://{host}{slash}{path}", unquote(login)
