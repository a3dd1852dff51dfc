"""One file of text → its documents: the whole of it, its paragraphs or its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from data_tools.commands.pack.encodings import LONGEST_DOCUMENT, decode_bytes, decode_lines
from data_tools.commands.pack.markup import MAIL_SUFFIXES, PAGE_SUFFIXES, decode_page, mail_text
from data_tools.commands.pack.text_files import open_file, read_document, read_lines
from data_tools.decode.options import DecodeError

PLAIN_SUFFIXES = (".txt", ".text", ".md", ".txt.gz", ".text.gz", ".md.gz")
TEXT_SUFFIXES = (*PLAIN_SUFFIXES, *MAIL_SUFFIXES, *PAGE_SUFFIXES)

Line = tuple[int, str | DecodeError]


def read_documents(
    path: Path, document: str, encoding: str
) -> Iterator[tuple[str | DecodeError, dict[str, Any]]]:
    """(text, or why a document cannot be read; what else is known about it) of each document that is not empty.

    Args:
        document: "file", "paragraph" (ended by an empty line) or "line".
        encoding: see `decode_bytes`.

    Raises:
        DecodeError: the file cannot be read any further.
    """
    name = path.name.lower()
    marked = name.endswith((*MAIL_SUFFIXES, *PAGE_SUFFIXES))
    if document != "file" and not marked:
        with open_file(path, encoding) as (file, found):
            lines = decode_lines(read_lines(file), found)
            yield from ((text, {}) for text in join_lines(lines, document))
        return
    raw = read_document(path)
    if not raw.strip():
        return
    about: dict[str, Any] = {}
    if name.endswith(MAIL_SUFFIXES):
        text, about = mail_text(raw, encoding)
    elif name.endswith(PAGE_SUFFIXES):
        text, about = decode_page(raw, encoding)
    else:
        text, about["encoding"] = decode_bytes(raw, encoding)
    if about.get("encoding", "").lower() in ("utf-8", "utf8", "us-ascii", "ascii"):
        del about["encoding"]  # said only where it is not what everybody expects
    if document != "file":
        numbered = ((0, line) for line in text.split("\n"))
        yield from ((part, about) for part in join_lines(numbered, document))
    elif text := text.strip():
        yield text, about


def join_lines(lines: Iterable[Line], document: str) -> Iterator[str | DecodeError]:
    """The lines that are not empty, or the paragraphs, of (offset, line); a line that cannot be read costs its own."""
    single = ((offset, part) for offset, line in lines for part in _at_line_ends(line))
    if document == "line":
        yield from (_place(offset, line) for offset, line in single if not _is_blank((offset, line)))
        return
    for blank, group in groupby(single, _is_blank):
        if not blank:
            yield _join(group)


def _at_line_ends(line: str | DecodeError) -> list[str] | list[DecodeError]:
    """The lines within what ends with LF: where a file ends them with CR, that is the whole file."""
    return [line] if isinstance(line, DecodeError) else line.removesuffix("\n").split("\n")


def _is_blank(line: Line) -> bool:
    return isinstance(line[1], str) and not line[1].strip()


def _place(offset: int, line: str | DecodeError) -> str | DecodeError:
    return line.strip() if isinstance(line, str) else DecodeError(f"{line} (line at byte {offset:,})")


def _join(lines: Iterable[Line]) -> str | DecodeError:
    parts: list[str] = []
    size = 0
    wrong: DecodeError | None = None
    for offset, line in lines:
        if isinstance(line, DecodeError):
            wrong = wrong or DecodeError(f"{line} (line at byte {offset:,})")
            continue
        size += len(line)
        if size > LONGEST_DOCUMENT:
            parts.clear()
        else:
            parts.append(line)
    if size > LONGEST_DOCUMENT:
        wrong = DecodeError(f"too long: more than {LONGEST_DOCUMENT >> 20} MiB in one paragraph")
    return wrong or "\n".join(parts).strip()
