"""Mails and pages → their text, by the standard library's parsers."""

from __future__ import annotations

import re
from contextlib import suppress
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from html.parser import HTMLParser
from typing import Any

from data_tools.commands.pack.encodings import clean_text, decode_bytes, replace_surrogates
from data_tools.decode.options import DecodeError

MAIL_SUFFIXES = (".eml", ".eml.gz")
PAGE_SUFFIXES = (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz")
LONGEST_PAGE = 8 << 20
"""Bytes of a page or of a mail's part in HTML: the parser is quadratic in what is never closed."""


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
    value = str(mail[name] or "")
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
    """What a page shows: no tags, scripts or styles; a line for each block. Raises DecodeError where it is too long."""
    if len(text) > LONGEST_PAGE:
        raise DecodeError(f"too long: more than {LONGEST_PAGE >> 20} MiB in one page")
    parser = _Shown()
    parser.feed(text)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.shown).split("\n"))
    return _BLANKS.sub("\n\n", "\n".join(lines)).strip()


_BLANKS = re.compile("\n{3,}")


class _Shown(HTMLParser):
    """Collects the text of a page in `shown`."""

    _HIDDEN = frozenset({"script", "style", "template"})
    _INLINE = frozenset(
        {
            "a",
            "abbr",
            "b",
            "code",
            "em",
            "font",
            "i",
            "img",
            "s",
            "small",
            "span",
            "strong",
            "sub",
            "sup",
            "tt",
            "u",
        }
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.shown: list[str] = []
        self._inside = ""  # of a hidden element

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self._HIDDEN:
            self._inside = tag
        elif tag not in self._INLINE:
            self.shown.append("\n" if tag in ("br", "tr", "li", "td", "th") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""
        elif tag not in self._INLINE and tag not in ("br", "tr", "li", "td", "th"):
            self.shown.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.shown.append(data.replace("\n", " "))
