"""Objects in JSON files: one a line, one a file, one after the other, or in one array."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data_tools.commands.pack.encodings import AUTO, LONGEST_DOCUMENT, decode_bytes, decode_lines
from data_tools.commands.pack.text_files import read_lines
from data_tools.decode.options import DecodeError

LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
BLOCK = 1 << 18  # bytes
Found = tuple[int, Any]
"""(byte of the file, value, or the DecodeError that says why there is none)."""


class NotJSONError(DecodeError):
    """What is wrong with a text that is no JSON, and where."""

    def __init__(self, error: ValueError) -> None:
        super().__init__(f"not JSON: {error}")
        self.at = getattr(error, "pos", 0)
        self.unterminated = "Unterminated" in str(error)

    def may_go_on(self, text: str) -> bool:
        """Whether it may be that the text is merely cut."""
        return self.unterminated or self.at + 16 > len(text)


def parse(text: str, read: Callable[[str], Any] = json.loads) -> Any:
    """A JSON value; raises DecodeError where it is none, or nested too deeply."""
    try:
        return read(text)
    except ValueError as error:
        raise NotJSONError(error) from None
    except RecursionError:
        raise DecodeError("nested too deeply: more levels than the parser goes down") from None


def has_lines(file: io.BufferedReader, name: str) -> bool:
    """Whether a file that stands at its beginning has one value a line: by its name, or where its first line has one.

    Then a line that is damaged costs no other.
    """
    first, end, _ = file.peek(1).lstrip().partition(b"\n")
    if name.lower().endswith(LINE_SUFFIXES):
        return not first.startswith(b"[")
    try:
        return bool(end) and isinstance(parse(first.decode("utf-8", "replace")), dict)
    except DecodeError:
        return False


def read_json_lines(file: BinaryIO, start: int, stop: int | None, encoding: str) -> Iterator[Found]:
    """The value of each line that begins in [start, stop); empty lines are passed over."""
    if start:
        file.seek(start - 1)
        for _ in read_lines(file, start):  # the line that began before
            pass
    for offset, line in decode_lines(read_lines(file, stop), encoding):
        if isinstance(line, DecodeError):
            yield offset, line
        elif line.strip():
            yield offset, _value_or_error(line)


def _value_or_error(text: str) -> Any:
    try:
        return parse(text)
    except DecodeError as error:
        return error


def read_json_values(file: BinaryIO, encoding: str) -> Iterator[Found]:
    """The values of a file: what an array holds, or what stands one after the other, whatever the line ends.

    The file is read in pieces: a value is bounded by what a document may be, the file is not. Where a value cannot be
    parsed, the end of it is not known, so that it is the last.
    """
    text = _Ahead(file, encoding)
    inside = False  # an array
    while sign := text.next_sign():
        if sign == ("]" if inside else "["):
            inside = not inside
            text.at += 1
            continue
        offset = text.passed + text.at
        try:
            whole = text.find_value()
        except DecodeError as error:
            yield offset, DecodeError(f"{error}; what follows it in the file is lost too")
            return
        yield offset, _value_or_error_of(whole, encoding)


def _value_or_error_of(text: str, encoding: str) -> Any:
    """The value that a piece of a file holds, whose bytes that are no text were kept as surrogates."""
    try:
        if _ESCAPED.search(text):
            text, _ = decode_bytes(text.encode("utf-8", "surrogateescape"), encoding)
        return parse(text)
    except DecodeError as error:
        return error


_ESCAPED = re.compile("[\udc80-\udcff]")


class _Ahead:
    """Text of a file from `at` on, as much of it as a value needs; `passed` characters are gone."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        name = "utf-8" if encoding == AUTO else encoding
        self._file, self._decoder = file, codecs.getincrementaldecoder(name)("surrogateescape")
        self._text, self._ended = "", False
        self.at = self.passed = 0

    def next_sign(self) -> str:
        """The next character that is no space or comma; "" at the end."""
        while True:
            found = _SIGN.search(self._text, self.at)
            if found is not None:
                self.at = found.start()
                return found[0]
            self.at = len(self._text)
            if not self._read(BLOCK):
                return ""

    def find_value(self) -> str:
        """The text of the value that begins here, passed over; raises DecodeError where none does."""
        while True:
            try:
                _, end = parse(self._text, lambda text: _DECODER.raw_decode(text, self.at))
            except NotJSONError as error:
                size = len(self._text) - self.at
                if size > LONGEST_DOCUMENT:
                    raise DecodeError(
                        f"too long: more than {LONGEST_DOCUMENT >> 20} MiB in one value"
                    ) from None
                if not error.may_go_on(self._text) or not self._read(max(BLOCK, size)):
                    raise
                continue
            if end < len(self._text) or not self._read(BLOCK):
                whole, self.at = self._text[self.at : end], end
                return whole

    def _read(self, size: int) -> bool:
        """Read `size` bytes more; False where there are none."""
        block = self._file.read(size)
        more = self._decoder.decode(block, not block)
        self.passed, self._text, self.at = self.passed + self.at, self._text[self.at :] + more, 0
        return bool(more)


_SIGN = re.compile(r"[^\s,]")
_DECODER = json.JSONDecoder()
