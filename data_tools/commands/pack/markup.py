"""Mails and pages → their text."""

from __future__ import annotations

import re
from contextlib import suppress
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from html import unescape
from typing import Any

from data_tools.commands.pack.encodings import clean_text, decode_bytes, replace_surrogates
from data_tools.decode.options import DecodeError

MAIL_SUFFIXES = (".eml", ".eml.gz")
PAGE_SUFFIXES = (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz")
LONGEST_HEADER = 1000
"""Characters of a mail's header that are decoded."""


def mail_text(raw: bytes, encoding: str) -> tuple[str, dict[str, Any]]:
    """(text, what is said about it) of a mail: its subject, an empty line, its body.

    The body is the first part that is plain text, else the first page, without markup. Attachments are left out.

    Raises:
        DecodeError: it is no mail, has no text, or the text is in no encoding that was asked for.
    """
    try:
        mail = message_from_bytes(raw)
        headers = {name: text for name in ("subject", "from", "date") if (text := _header(mail, name))}
        parts = [part for part in mail.walk() if not part.is_multipart() and not _is_attachment(part)]
        payloads = [(part, part.get_payload(decode=True)) for part in parts]
    except Exception as error:  # the parser was not written for hostile mails
        raise DecodeError(f"not a mail: {type(error).__name__}: {error}") from None
    if not headers:
        raise DecodeError("not a mail: it has no subject, sender or date")
    body = ""
    for kind in ("text/plain", "text/html"):
        chosen = next((p for p in payloads if p[0].get_content_type() == kind and p[1]), None)
        if chosen is not None:
            part, payload = chosen
            assert isinstance(payload, bytes)
            text, found = decode_bytes(payload, encoding, part.get_content_charset())
            body = page_text(text) if kind == "text/html" else text
            headers["encoding"] = found
            break
    return f"{headers.get('subject', '')}\n\n{body}".strip(), headers


def _is_attachment(part: Message) -> bool:
    return part.get_content_disposition() == "attachment"


def _header(mail: Message, name: str) -> str:
    """A header in characters; what cannot be decoded stays as it stands there."""
    value = str(mail[name] or "")[:LONGEST_HEADER]
    with suppress(ValueError, LookupError, MessageError):  # an unknown encoding, or base64 that is none
        value = str(make_header(decode_header(value)))
    return clean_text(replace_surrogates(" ".join(value.split())))


def decode_page(raw: bytes, encoding: str) -> tuple[str, dict[str, Any]]:
    """(text without markup, what is said about it) of a page, in the encoding that it declares; raises DecodeError."""
    declared = _DECLARED.search(raw[:4096])
    text, found = decode_bytes(raw, encoding, declared[1].decode("ascii") if declared else None)
    return page_text(text), {"encoding": found}


_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)


def page_text(text: str) -> str:
    """What a page shows: no tags, comments, scripts or styles; a line for each block.

    One pass over the text: the standard library's parser takes minutes for some kilobytes of tags that nothing closes.
    """
    shown: list[str] = []
    at, tag = 0, _TAG
    while (start := text.find("<", at)) >= 0:
        shown.append(_SPACE.sub(" ", text[at:start]))
        name = _NAME.match(text, start)
        if text.startswith("<!--", start):
            at = _end_of(text, "-->", start)
        elif name is not None:
            whole = tag.match(text, start)
            if whole is None:  # a quote that nothing closes: quotes are not counted from here on
                tag = _ANY_TAG
            at = whole.end() if whole else _end_of(text, ">", start)
            kind = name[1].lower()
            if kind in _HIDDEN:
                closing = _HIDDEN[kind].search(text, at)
                at = closing.end() if closing else len(text)
            shown.append("" if kind.lstrip("/") in _INLINE else "\n" if kind.lstrip("/") in _ROWS else "\n\n")
        elif text.startswith(("<!", "<?"), start):
            at = _end_of(text, ">", start)
        else:  # it stands for itself
            shown.append("<")
            at = start + 1
    shown.append(_SPACE.sub(" ", text[at:]))
    lines = (" ".join(line.split()) for line in unescape("".join(shown)).split("\n"))
    return _BLANKS.sub("\n\n", "\n".join(lines)).strip()


def _end_of(text: str, sign: str, start: int) -> int:
    """Where the next ``sign`` ends; the end of the text where there is none."""
    found = text.find(sign, start)
    return found + len(sign) if found >= 0 else len(text)


_SPACE = re.compile(r"\s+")
_BLANKS = re.compile("\n{3,}")
_NAME = re.compile(r"<(/?[A-Za-z][^\s/>]{0,64})")
_TAG = re.compile(r"""<(?:[^>"']++|"[^"]*+"|'[^']*+')*+>""")
_ANY_TAG = re.compile("<[^>]*+>")
_HIDDEN = {kind: re.compile(rf"</{kind}[^>]*+>", re.IGNORECASE) for kind in ("script", "style", "template")}
_INLINE = frozenset(
    "a abbr b code em font i img s small span strong sub sup tt u script style template".split()  # noqa: SIM905
)
_ROWS = frozenset({"br", "tr", "li", "td", "th"})
