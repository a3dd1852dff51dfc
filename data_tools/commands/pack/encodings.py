"""Bytes that people call text → characters: UTF-8, the encoding that was named, or the one that fits.

The rules, whichever encoding is asked for: a byte-order mark names the encoding and is no character; CRLF and CR are
line ends like LF; NUL is no character, and where one in a hundred characters is NUL the bytes are no text.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterable, Iterator

from charset_normalizer import from_bytes

from data_tools.decode.options import DecodeError
from data_tools.errors import UserError

AUTO = "auto"
LONGEST_DOCUMENT = 128 << 20
"""Bytes of one document, line or row; decoding needs about four times as much memory."""
GUESSED_FROM = 64 << 10
"""Bytes that are looked at to guess an encoding."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_NO_TEXT = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"})
"""Codecs of Python that are no encodings of files; two of them are quadratic."""
_CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "cp866", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2",
    "cp932", "euc_jp", "gb18030", "big5", "cp949", "mac_roman",
]  # fmt: skip
_SIGNS = "\xa0«»‹›“”„‘’‚–—…•€£§°·´®©™"
_ALPHABETS = (
    ("cp1252", "éèêëàâäáãåçñóôöòõíìîïúùûüÿßøæœ¿¡ºª"),
    ("cp1252", "áéíóúýþæöð"),
    ("cp1250", "ąćęłńóśźż"),
    ("iso8859_2", "ąćęłńóśźż"),
    ("cp1250", "áäčďéěíľĺňóôŕřšťúůýž"),
    ("iso8859_2", "áäčďéěíľĺňóôŕřšťúůýž"),
    ("cp1250", "áéíóöőúüű"),
    ("cp1250", "ăâîşţ"),
    ("cp1250", "čćđšž"),
    ("cp1254", "çğıöşüâîû"),
)
"""Encodings of Latin letters, with what a language has beside a to z: the first that a text fits is taken, for in a
short text the library tells é from ķ by chance."""
_STRANGE = re.compile(r"[^\W\da-zA-Z_]{4}|[a-zß-öø-ÿ][«»„©®°§£€A-ZÀ-ÖØ-Þ]|õ(?!e)|\w[¿¡]\w")
"""What such a text does not have: four accents in a row, capitals and signs within words; õ is ő but before e."""


class UndecodedLineError(DecodeError):
    """A line that is in no encoding asked for; `readable` is what is ASCII in it."""

    def __init__(self, reason: str, line: bytes) -> None:
        super().__init__(reason)
        self.readable = line.decode("ascii", "replace")


def check_encoding(encoding: str) -> str:
    """The name as given; raises UserError where there is no such encoding."""
    if encoding != AUTO and not is_encoding(encoding):
        raise UserError(
            f"--encoding {encoding}: there is no such encoding; auto, utf-8 and latin-1 are usual"
        )
    return encoding


def is_encoding(name: str) -> bool:
    """Whether Python can read text in an encoding of this name."""
    try:
        return codecs.lookup(name).name not in _NO_TEXT and isinstance(b"".decode(name), str)
    except (LookupError, ValueError):
        return False


def find_mark(head: bytes) -> tuple[str | None, int]:
    """(encoding, bytes of the byte-order mark) that the first bytes of a file name; (None, 0) without a mark."""
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), (None, 0))


def find_wide(head: bytes, encoding: str) -> str | None:
    """UTF-16 or UTF-32, where a file that starts so is in it: by its mark, its name, or its NULs with "auto"."""
    marked, _ = find_mark(head)
    if marked is not None:
        return None if marked == "utf-8" else marked
    if encoding != AUTO:
        name = codecs.lookup(encoding).name
        return {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(name, name) if name[:6] in _WIDE else None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) < 4 or max(even, odd) < 0.2 * len(head) or min(even, odd) > 0.02 * len(head):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


_WIDE = ("utf-16", "utf-32")


def decode_bytes(raw: bytes, encoding: str, declared: str | None = None) -> tuple[str, str]:
    """(text, its encoding) of one document.

    Args:
        encoding: what was asked for; "auto" takes UTF-8 where the bytes are that, else what fits best.
        declared: what the document says of itself, as mails and pages do; goes before `encoding`.

    Raises:
        DecodeError: the bytes are in none of these, or are no text.
    """
    marked, start = find_mark(raw)
    wide = find_wide(raw[:4096], encoding)
    if marked or wide:
        return clean_text(_decode_as(raw[start:], marked or str(wide))), marked or str(wide)
    if declared is not None and is_encoding(declared):
        name = _as_browsers_read(declared)
        if name == "cp1252" and _is_utf8(raw):  # which text in the former is not by chance
            return clean_text(raw.decode()), "utf-8"
        try:
            return clean_text(_decode_as(raw, name)), name
        except DecodeError:
            pass  # a wrong declaration is common, and the rules below find what it should have said
    if encoding != AUTO:
        return clean_text(_decode_as(raw, encoding)), encoding_name(encoding)
    found = guess_encoding([raw])
    return clean_text(_decode_as(raw, found)), found


def _decode_as(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        remedy = "" if encoding == AUTO else "; name its encoding, or let --encoding auto find it"
        byte = f"byte 0x{raw[error.start]:02x} at {error.start:,}"
        raise DecodeError(f"not {encoding.upper()}: {byte}{remedy}") from None
    except UnicodeError as error:  # a codec that is no table of characters
        raise DecodeError(f"not {encoding.upper()}: {error}") from None


def _as_browsers_read(declared: str) -> str:
    """What is called Latin-1, Shift JIS … is what extends it, mostly Windows', as browsers and mail readers take it."""
    name = encoding_name(declared)
    return _EXTENDED.get(name, name)


def encoding_name(name: str) -> str:
    """One name for all that an encoding is called: `KOI8-R` and `koi8_r` are `koi8_r`, `UTF8` is `utf-8`."""
    found = codecs.lookup(name).name
    return found if found.startswith("utf") else found.replace("-", "_")


_EXTENDED = {
    "ascii": "cp1252", "iso8859_1": "cp1252", "iso8859_9": "cp1254", "shift_jis": "cp932", "euc_kr": "cp949",
    "gb2312": "gb18030", "gbk": "gb18030",
}  # fmt: skip


def clean_text(text: str) -> str:
    """Text with LF alone as its line end, and without NULs; raises DecodeError where it is binary."""
    nulls = text.count("\0")
    if nulls > 0.01 * len(text):
        raise DecodeError(f"no text: {nulls:,} of {len(text):,} characters are NUL")
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def replace_surrogates(text: str) -> str:
    r"""Text in which every lone surrogate, which JSON can write (`"\ud800"`), is U+FFFD: it is no character."""
    return _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def guess_encoding(parts: Iterable[bytes]) -> str:
    """The encoding in which pieces of one file are text: UTF-8 if they are that, else the one that fits best.

    Raises:
        DecodeError: none does.
    """
    strange = [part for part in parts if not _is_utf8(part)]
    if not strange:
        return "utf-8"
    whole = b"\n".join(strange)
    sample = _sample(whole)
    japanese = _guess_japanese(sample)
    if japanese:
        return japanese
    for encoding, letters in _ALPHABETS:
        if _fits(sample, encoding, letters) and _decodes(whole, encoding):
            return encoding
    best = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    if best is None or not _decodes(whole, best.encoding):
        raise DecodeError("in no encoding that is known: name it with --encoding, if it is text")
    return best.encoding


def _is_utf8(raw: bytes) -> bool:
    return b"\x1b$" not in raw and _decodes(raw, "utf-8")


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeError:
        return False
    return True


def _sample(raw: bytes) -> bytes:
    """Lines that are not ASCII, as many as a guess looks at."""
    if len(raw) <= GUESSED_FROM:
        return raw
    lines: list[bytes] = []
    room = GUESSED_FROM
    for line in raw.split(b"\n"):
        if not line.isascii() and room > 0:
            lines.append(line[: 2 * GUESSED_FROM])
            room -= len(line)
    return b"\n".join(lines) or raw[:GUESSED_FROM]


def _guess_japanese(sample: bytes) -> str | None:
    """Every fourth character of a Japanese text is hiragana, which no text read in a wrong encoding is."""
    for encoding in ("iso2022_jp", "euc_jp", "cp932"):
        text = sample.decode(encoding, "ignore")
        wide = sum(character > "\x7f" for character in text)
        if wide and _decodes(sample, encoding) and len(_HIRAGANA.findall(text)) > 0.25 * wide:
            return encoding
    return None


_HIRAGANA = re.compile("[\u3041-\u3096]")


def _fits(sample: bytes, encoding: str, letters: str) -> bool:
    """Whether a sample, in an encoding, is a text of mostly a to z, these letters, and common signs."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    high = [character for character in text if character > "\x7f"]
    if not set(high) <= {*letters, *letters.upper(), *_SIGNS} or _STRANGE.search(text):
        return False
    return sum(map(str.isalpha, high)) <= 0.5 * sum(map(str.isalpha, text))


def decode_lines(
    lines: Iterable[tuple[int, bytes | None]], encoding: str
) -> Iterator[tuple[int, str | DecodeError]]:
    """(offset, text or what is wrong) of each line; "auto" guesses for the lines that are not UTF-8.

    Args:
        lines: (offset, bytes) in the order of the file; None for a line that is too long to be read.
    """
    for bunch in _bunches(lines):
        found: str | DecodeError = encoding
        if encoding == AUTO:
            found = _guess_or_error([line for _, line in bunch if line is not None])
        for offset, line in bunch:
            yield offset, _decode_line(line, encoding, found)


def _decode_line(line: bytes | None, encoding: str, found: str | DecodeError) -> str | DecodeError:
    if line is None:
        return DecodeError(f"too long: more than {LONGEST_DOCUMENT >> 20} MiB in one line")
    try:
        if encoding == AUTO and _is_utf8(line):
            return clean_text(line.decode())
        return found if isinstance(found, DecodeError) else clean_text(_decode_as(line, found))
    except DecodeError as error:
        return UndecodedLineError(str(error), line)


def _guess_or_error(lines: list[bytes]) -> str | DecodeError:
    try:
        return guess_encoding(lines)
    except DecodeError as error:
        return error


def _bunches(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[list[tuple[int, bytes | None]]]:
    """Lines in groups of about as many bytes as a guess looks at; those before an error come before it."""
    bunch: list[tuple[int, bytes | None]] = []
    size = 0
    try:
        for offset, line in lines:
            bunch.append((offset, line))
            size += len(line or b"") + 64
            if size >= GUESSED_FROM:
                yield bunch
                bunch, size = [], 0
    except (OSError, EOFError, zlib.error):
        yield bunch
        raise
    yield bunch
