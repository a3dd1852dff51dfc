"""Text: files of it, JSON objects with a field of it, tables with a column of it; see `encodings` for what is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.commands.pack.documents import TEXT_SUFFIXES, read_documents
from data_tools.commands.pack.encodings import check_encoding, replace_surrogates
from data_tools.commands.pack.engine import Packed, Skipped, Source, stamp
from data_tools.commands.pack.json_values import (
    LINE_SUFFIXES,
    Found,
    has_lines,
    read_json_lines,
    read_json_values,
)
from data_tools.commands.pack.table import read_rows
from data_tools.commands.pack.text_files import (
    TextFile,
    TextFiles,
    find_text_files,
    group_by_bytes,
    open_file,
)
from data_tools.decode.options import DecodeError
from data_tools.errors import UserError

JSON_SUFFIXES = (*LINE_SUFFIXES, ".json", ".json.gz")
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def plan_text(
    inputs: Sequence[Path], shard_bytes: int, document: str = "file", encoding: str = "utf-8",
    labels: str = "auto", classes: Path | None = None,
) -> Source:  # fmt: skip
    """Plain text, mails and pages, as they lie in files.

    Args:
        document: what one sample is, see `read_documents`.
        encoding: of the files that do not say it themselves.
        labels: from folders, and their numbers in `classes`; see `label_files`.
    """
    check_encoding(encoding)
    found = find_text_files(inputs, TEXT_SUFFIXES, labels, classes)
    pieces = [(file.size, [*_describe(file), document, encoding]) for file in found.files]
    return _source(read_text, pieces, inputs, found, shard_bytes)


def plan_jsonl(
    inputs: Sequence[Path], shard_bytes: int, text_field: str = "text", encoding: str = "utf-8",
    labels: str = "none", classes: Path | None = None,
) -> Source:  # fmt: skip
    """Objects in JSON files, one a line or otherwise: their ``text_field`` is the txt member, the rest the json member.

    A file of lines that is larger than a shard is read in several jobs.
    """
    check_encoding(encoding)
    found = find_text_files(inputs, JSON_SUFFIXES, labels, classes)
    pieces: list[tuple[int, Any]] = []
    empty = [file for file in found.files if file.size == 0]
    for file in found.files:
        step = shard_bytes if file.size > shard_bytes and _can_be_cut(file.path, encoding) else file.size
        for start in range(0, file.size, max(1, step)):
            stop = min(start + step, file.size)
            pieces.append((stop - start, [*_describe(file), text_field, encoding, start, stop]))
    if not pieces:
        raise UserError(f"{inputs[0]}: the files are empty")
    skipped = [*found.skipped, *(Skipped(str(file.path), "empty") for file in empty)]
    return _source(read_jsonl, pieces, inputs, replace(found, skipped=skipped), shard_bytes)


def plan_csv(
    inputs: Sequence[Path], shard_bytes: int, text_field: str = "text", encoding: str = "utf-8",
    labels: str = "none", classes: Path | None = None,
) -> Source:  # fmt: skip
    """Rows of tables: their column ``text_field`` is the txt member, the others are the json member."""
    check_encoding(encoding)
    found = find_text_files(inputs, TABLE_SUFFIXES, labels, classes)
    pieces = [(file.size, [*_describe(file), text_field, encoding]) for file in found.files]
    return _source(read_csv, pieces, inputs, found, shard_bytes)


def _describe(file: TextFile) -> list[Any]:
    return [str(file.path), file.number, file.name, file.label]


def _can_be_cut(path: Path, encoding: str) -> bool:
    """Whether a file's parts can be read by themselves."""
    if path.suffix.lower() == ".gz":
        return False
    with open_file(path, encoding) as (file, _):
        return file.seekable() and has_lines(file, path.name)


def _source(
    read: Callable[[Any], Iterator[Packed | Skipped]], pieces: list[tuple[int, Any]], inputs: Sequence[Path],
    found: TextFiles, shard_bytes: int,
) -> Source:  # fmt: skip
    return Source(
        read,
        group_by_bytes(pieces, shard_bytes, shuffled=bool(found.classes)),
        {"source": inputs[0].name, **({"classes": found.classes} if found.classes else {})},
        stamp=stamp(file.path for file in found.files),
        skipped=found.skipped,
    )


def read_text(job: list[Any]) -> Iterator[Packed | Skipped]:
    """Documents of a job's files: txt, json with the file's name and what else is known, cls where it has a class."""
    for path, number, name, label, document, encoding in job:
        count, empty = 0, True
        try:
            for text, known in read_documents(Path(path), document, encoding):
                empty = False
                if isinstance(text, DecodeError):
                    yield Skipped(path, str(text))
                    continue
                note = f"of the documents in {known['encoding']}" if "encoding" in known else ""
                key = f"{number:06d}_{count:08d}"
                yield Packed(key, _members(text, {"file": name, **known}, label), note=note)
                count += 1
        except DecodeError as error:
            yield Skipped(path, str(error))
        else:
            if empty:
                yield Skipped(path, "empty")


def read_jsonl(job: list[Any]) -> Iterator[Packed | Skipped]:
    """Objects of a job's files or parts of files: txt and json, cls where the file has a class.

    A file that holds no lines but one value or an array of them is told in the json member, for it is a sample's name.
    """
    for path, number, name, label, text_field, encoding, start, stop in job:
        try:
            with open_file(Path(path), encoding) as (file, found):
                as_lines = start > 0 or has_lines(file, path)
                whole = stop == Path(path).stat().st_size
                values: Iterator[Found] = (
                    read_json_lines(file, start, None if whole else stop, found)
                    if as_lines
                    else read_json_values(file, found)
                )
                for offset, value in values:
                    sample = _take_text(value, text_field)
                    if isinstance(sample, str):
                        yield Skipped(f"{path} (byte {offset})", sample)
                        continue
                    text, rest = sample
                    about = rest if as_lines else {"file": name, **rest}
                    yield Packed(f"{number:05d}_{offset:012d}", _members(text, about, label))
        except DecodeError as error:
            yield Skipped(path, str(error))


def read_csv(job: list[Any]) -> Iterator[Packed | Skipped]:
    """Rows of a job's files: txt and json, cls where the file has a class."""
    for path, number, _, label, text_field, encoding in job:
        try:
            with open_file(Path(path), encoding) as (file, found):
                for line, row in read_rows(file, found):
                    sample = _take_text(row, text_field)
                    if isinstance(sample, str):
                        yield Skipped(f"{path} (line {line})", sample)
                    else:
                        yield Packed(f"{number:05d}_{line:012d}", _members(*sample, label))
        except DecodeError as error:
            yield Skipped(path, str(error))


def _take_text(value: Any, text_field: str) -> tuple[str, dict[str, Any]] | str:
    """(text, the other fields) of an object, or why it has none."""
    if isinstance(value, DecodeError):
        return str(value)
    if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        return f"no such text: field {text_field!r}, where there is {found[:200]}; choose with --text-field"
    return value[text_field], {name: other for name, other in value.items() if name != text_field}


def _members(text: str, about: dict[str, Any], label: int | None) -> dict[str, bytes]:
    members = {"txt": replace_surrogates(text).encode()}
    if about:
        members["json"] = replace_surrogates(json.dumps(about, ensure_ascii=False)).encode()
    if label is not None:
        members["cls"] = str(label).encode()
    return members
