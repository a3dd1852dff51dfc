"""Where an object lies, without what only opens it: user, password, signature."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

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
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    host, slash, path = rest.partition("/")
    bare = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    if not scheme.startswith("http") or ("?" not in path and "#" not in path):
        return bare
    parts = urlsplit(bare)
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


def name_ends(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a path, or a URL before its query, ends so."""
    return location_of(name).split("?")[0].endswith(endings) or location_of(name).endswith(endings)
