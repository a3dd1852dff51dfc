"""Where an object lies, without what only opens it: user, password, signature."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from data_tools.errors import UserError
from data_tools.storage.urls import is_http, is_remote, redacted, take_login

_SIGNED = re.compile(
    r"x-(amz|goog|ms|oss|cos)-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|policy|expires?"
    r"|.*(signature|token|secret|password|credential|api-?key|access-?key).*|sig|auth|authorization"
    r"|response-content-(type|disposition|encoding|language)",
    re.IGNORECASE,
)
"""Parameters of presigned URLs: S3, Google, Azure, CloudFront and their kin; tokens of other servers."""
_AZURE = re.compile(r"s[vstrpie]|srt|spr|sip|sdd|ses|sk(oid|tid|t|e|s|v)|[se]aoid|suoid|scid")
"""What else an Azure signature (``sig``) brings along."""


def location_of(url: str) -> str:
    """The URL without user, password, fragment and signature: two signatures of one object have one location.

    Other parameters (``?file=a.tar``) stay, for they may say which object is meant; so does a path, as it is.
    """
    if not is_remote(url):
        return url
    bare = take_login(url)[0]
    if not is_http(url) or ("?" not in bare and "#" not in bare):
        return bare
    parts = split_url(bare)
    asked = parse_qsl(parts.query, keep_blank_values=True)
    azure = any(name == "sig" for name, _ in asked)
    kept = [
        (name, value)
        for name, value in asked
        if not _SIGNED.fullmatch(name) and not (azure and _AZURE.fullmatch(name))
    ]
    return urlunsplit(
        (parts.scheme, parts.netloc, parts.path, urlencode(kept, quote_via=quote, safe="/"), "")
    )


def split_url(url: str) -> SplitResult:
    """The parts of a URL; raises UserError where it is none, such as ``http://[::1/a``."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise UserError(f"{redacted(url)}: is no URL ({error}); check how it is written") from None


def name_ends(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a path, or a URL before its query, ends so, in capitals or not."""
    place = location_of(name).lower()
    return place.split("?")[0].endswith(endings) or place.endswith(endings)
