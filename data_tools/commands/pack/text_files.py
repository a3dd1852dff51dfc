"""Files of text: which of those named are to be read, what they are called, their classes, and who reads them."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_tools.commands.pack.classes import label_files, skip_bare_folders, skip_strays
from data_tools.commands.pack.encodings import LONGEST_DOCUMENT, find_mark, find_wide
from data_tools.commands.pack.engine import Skipped
from data_tools.decode.options import DecodeError
from data_tools.errors import UserError
from data_tools.order.permutation import derive_key, permute
from data_tools.storage.folders import walk_folder

SAMPLE_COST = 2048
"""Bytes that a sample takes in a shard beside its text: the headers of its members, and what fills their blocks."""


@dataclass(frozen=True)
class TextFile:
    """One file: where it is, its place in the order, its name within what was asked for, its class (None: no class)."""

    path: Path
    number: int
    name: str
    label: int | None
    size: int


@dataclass(frozen=True)
class TextFiles:
    """What was found: the files in order, their classes by number, and what is left out."""

    files: list[TextFile]
    classes: list[str]
    skipped: list[Skipped]


def find_text_files(
    inputs: Sequence[Path], suffixes: tuple[str, ...], labels: str, classes: Path | None = None
) -> TextFiles:
    """The files named, whatever they are called, and those with the suffixes in the folders named.

    Args:
        labels, classes: see `label_files`; one folder alone is no class here.

    Raises:
        UserError: one is missing, a folder has nothing to read, or it cannot be said which folders are classes.
    """
    found: dict[Path, None] = {}  # each once
    folders: list[Path] = []
    skipped: list[Skipped] = []
    for path in inputs:
        if path.is_dir():
            walk = walk_folder(path)
            chosen = {file: file.name.lower().endswith(suffixes) for file in walk.files}
            if not any(chosen.values()):
                raise UserError(f"{path}: holds no {', '.join(suffixes)} files")
            folders += walk.folders
            found |= dict.fromkeys(file for file, is_text in chosen.items() if is_text)
            skipped += [Skipped(str(place), reason) for place, reason in walk.passed_over]
            skipped += [_not_read(file) for file, is_text in chosen.items() if not is_text]
        elif path.is_file():
            found[path] = None
        else:
            raise UserError(f"{path}: there is no such file or folder")
    root = _root(inputs)
    names = {path: Path(os.path.relpath(path, root)) for path in found}
    labelled = label_files(names, inputs[0], labels, classes, "text", least=2)
    files = [
        TextFile(path, number, names[path].as_posix(), label, _size_of(path))
        for number, (path, label) in enumerate(zip(labelled.files, labelled.labels, strict=True))
    ]
    skipped += skip_strays(labelled.strays)
    if len(inputs) == 1:  # else its own folders are no classes
        skipped += skip_bare_folders(labelled, folders, inputs[0], "texts")
    return TextFiles(files, labelled.classes, skipped)


def _not_read(path: Path) -> Skipped:
    kind = f"{path.suffix.lower()} files" if path.suffix else "files without an extension"
    return Skipped(str(path), f"{kind}: not read, unless named one by one")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a dangling link: reading it says so


def _root(inputs: Sequence[Path]) -> Path:
    """The folder that names are relative to: the one asked for, or what all that was asked for has in common."""
    if len(inputs) == 1:
        return inputs[0] if inputs[0].is_dir() else inputs[0].parent
    return Path(os.path.commonpath([path.absolute().parent for path in inputs]))


def group_by_bytes(
    pieces: Sequence[tuple[int, Any]], shard_bytes: int, shuffled: bool = False
) -> list[list[Any]]:
    """Jobs of about `shard_bytes` each, from (bytes, what to read) in order.

    Args:
        shuffled: deal them by a fixed permutation, so that no shard holds one class only.
    """
    order = np.arange(len(pieces))
    if shuffled:
        order = permute(order, len(pieces), derive_key(0))
    jobs: list[list[Any]] = [[]]
    room = shard_bytes
    for i in order.tolist():
        size, piece = pieces[i]
        if size + SAMPLE_COST > room and jobs[-1]:
            jobs.append([])
            room = shard_bytes
        room -= size + SAMPLE_COST
        jobs[-1].append(piece)
    return jobs


@contextmanager
def open_file(path: Path, encoding: str) -> Iterator[tuple[io.BufferedReader, str]]:
    """(file, encoding of its lines): unpacked where it is .gz, after its byte-order mark, in an encoding whose line
    ends are single bytes (UTF-16 becomes UTF-8 on the way).

    Raises:
        DecodeError: within it, the file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as raw:
            file: Any = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
            head = file.peek(4096)[:4096]
            marked, start = find_mark(head)
            file.read(start)
            wide = find_wide(head, encoding)
            yield (io.BufferedReader(_Narrow(file, wide)), "utf-8") if wide else (file, marked or encoding)
    except (OSError, EOFError, zlib.error) as error:
        raise DecodeError(f"cannot be read: {error}") from None


class _Narrow(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8; what is damaged becomes a byte that UTF-8 has not, so that its line is found."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._file.read(1 << 16)
            text = self._decoder.decode(block, not block)
            self._left = text.encode().replace("\ufffd".encode(), b"\xff")
            if not block and not self._left:
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def read_document(path: Path) -> bytes:
    """A whole file, unpacked; raises DecodeError where it cannot be read, or is too long for one document."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            raw: bytes = file.read(LONGEST_DOCUMENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DecodeError(f"cannot be read: {error}") from None
    if len(raw) > LONGEST_DOCUMENT:
        raise DecodeError(
            f"too long: more than {LONGEST_DOCUMENT >> 20} MiB; --document paragraph makes several of it"
        )
    return raw


def read_lines(file: BinaryIO, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of the lines that begin before `stop`, from where the file stands; raises what reading raises.

    A line that is longer than a document may be is passed over: None stands for it.
    """
    offset = file.tell() if file.seekable() else 0
    while (stop is None or offset < stop) and (line := file.readline(LONGEST_DOCUMENT + 1)):
        size = len(line)
        if size > LONGEST_DOCUMENT:
            while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                size += len(line)
            yield offset, None
        else:
            yield offset, line
        offset += size
