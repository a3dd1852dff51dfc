"""Tables with a header as text (CSV), as spreadsheets and databases write them → rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from data_tools.commands.pack.encodings import LONGEST_DOCUMENT, UndecodedLineError, decode_lines
from data_tools.commands.pack.text_files import read_lines
from data_tools.decode.options import DecodeError

SEPARATORS = ",;\t|"


def read_rows(file: BinaryIO, encoding: str) -> Iterator[tuple[int, dict[str, str] | DecodeError]]:
    """(line, row by column, or what is wrong with it) of each row below the header.

    The separator is the one of `SEPARATORS` that the header has most of, or what Excel's `sep=;` before it says. A row
    with more or fewer fields than the header is wrong, and so is one in which a line is in another encoding.

    Raises:
        DecodeError: there is no header, or the rest cannot be read.
    """
    csv.field_size_limit(LONGEST_DOCUMENT)
    lines = _Lines(decode_lines(read_lines(file), encoding))
    first = next(lines, "")
    separator = ""
    if first.lower().startswith("sep="):
        separator, first = first[4:5], next(lines, "")
    if lines.wrong is not None:
        raise lines.wrong
    if not first.strip():
        raise DecodeError("empty")
    separator = separator or max(SEPARATORS, key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=separator)
    columns: list[str] | None = None
    while True:
        line = lines.count
        lines.wrong = None
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DecodeError(f"not CSV: {error} (line {lines.count})") from None
        if row is None:
            return
        if lines.ended:  # the reader asked for more: within quotes
            raise DecodeError(
                f"a quote that is never closed: opened in the row of line {line + 1}; the rest is lost"
            )
        if columns is None:
            columns = [name.strip() for name in row]
        elif lines.wrong is not None:
            yield line + 1, lines.wrong
        elif len(row) != len(columns):
            if row:
                yield (
                    line + 1,
                    DecodeError(f"not as many fields as the header: {len(row)}, not {len(columns)}"),
                )
        else:
            yield line + 1, dict(zip(columns, row, strict=True))


class _Lines(Iterator[str]):
    """Decoded lines; what is wrong with one of them is kept in `wrong`, and its quotes still count."""

    def __init__(self, lines: Iterator[tuple[int, str | DecodeError]]) -> None:
        self._lines, self.count = lines, 0
        self.ended = False  # whether more was asked for than there is
        self.wrong: DecodeError | None = None

    def __next__(self) -> str:
        self.ended = True
        _, line = next(self._lines)
        self.ended = False
        self.count += 1
        if isinstance(line, DecodeError):
            self.wrong = line
            return line.readable if isinstance(line, UndecodedLineError) else "\n"
        return line
