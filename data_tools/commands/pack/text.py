"""Text: JSONL (one document a line) and plain-text corpora (one document a file, paragraph or line)."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from data_tools.commands.pack.engine import Packed, Skipped, Source, stamp
from data_tools.errors import UserError
from data_tools.storage.folders import find_files as files_below

TEXT_SUFFIXES = (".txt", ".text", ".md", ".txt.gz", ".text.gz", ".md.gz")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def find_files(inputs: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Files named, and those with the suffixes in folders named; raises UserError when one is missing or empty."""
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = [file for file in files_below(path, suffixes) if file.is_file()]
            if not found:
                raise UserError(f"{path}: holds no {', '.join(suffixes)} files")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder")
    return files


def plan_jsonl(inputs: list[Path], shard_bytes: int, text_field: str = "text") -> Source:
    """Each line an object: its ``text_field`` becomes the txt member, the rest the json member."""
    jobs = []
    files = find_files(inputs, JSONL_SUFFIXES)
    for number, path in enumerate(files):
        size = path.stat().st_size
        step = max(1, size) if path.suffix == ".gz" else shard_bytes
        jobs += [
            [str(path), number, start, min(start + step, size), text_field] for start in range(0, size, step)
        ]
    if not jobs:
        raise UserError(f"{inputs[0]}: the files are empty")
    return Source(read_jsonl, jobs, {"source": inputs[0].name}, stamp=stamp(files))


def read_jsonl(job: list[Any]) -> Iterator[Packed | Skipped]:
    path, number, start, stop, text_field = job
    for offset, line in _lines(Path(path), start, stop):
        place = f"{path} (byte {offset})"
        try:
            document = json.loads(line)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start, line[error.start]) from None
        except ValueError as error:
            yield Skipped(place, f"not JSON: {error}")
            continue
        if not isinstance(document, dict) or not isinstance(document.get(text_field), str):
            found = ", ".join(document) if isinstance(document, dict) else type(document).__name__
            yield Skipped(
                place, f"no text in field {text_field!r} (it has {found}); choose with --text-field"
            )
            continue
        members = {"txt": document.pop(text_field).encode("utf-8", "replace")}
        if document:
            members["json"] = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        yield Packed(f"{number:05d}_{offset:012d}", members)


def _lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the non-empty lines that begin in [start, stop); a gzip file is read as a whole."""
    if path.suffix == ".gz":
        offset = 0
        with gzip.open(path) as packed:
            for line in _unpacked(packed, path):
                if line.strip():
                    yield offset, line
                offset += len(line)
        return
    with path.open("rb") as file:
        offset = max(0, start - 1)
        file.seek(offset)
        if start:
            offset += len(file.readline())  # the line that began before this job's part
        while offset < stop and (line := file.readline()):
            if line.strip():
                yield offset, line
            offset += len(line)


def _unpacked(packed: Iterable[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from packed
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from None


def plan_text(
    inputs: list[Path], shard_bytes: int, document: str = "file", encoding: str = "utf-8"
) -> Source:
    """``document``: what one sample is: a "file", a "paragraph" (ended by an empty line) or a "line"."""
    try:
        "".encode(encoding)
    except LookupError:
        raise UserError(
            f"--encoding {encoding}: there is no such encoding; utf-8 and latin-1 are usual"
        ) from None
    jobs: list[list[Any]] = []
    room = 0
    files = find_files(inputs, TEXT_SUFFIXES)
    for number, path in enumerate(files):
        size = path.stat().st_size
        if size > room or not jobs:
            jobs.append([])
            room = shard_bytes
        room -= size
        jobs[-1].append([str(path), number, document, encoding])
    return Source(read_text, jobs, {"source": inputs[0].name}, stamp=stamp(files))


def read_text(job: list[Any]) -> Iterator[Packed | Skipped]:
    for path, number, document, encoding in job:
        count = 0
        try:
            for count, text in enumerate(_documents(Path(path), document, encoding), start=1):
                about = json.dumps({"file": Path(path).name}, ensure_ascii=False)
                key = f"{number:06d}_{count - 1:08d}"
                yield Packed(
                    key, {"txt": text.encode("utf-8", "replace"), "json": about.encode("utf-8", "replace")}
                )
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error.start, error.object[error.start], encoding) from None
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); check or remove it") from None
        if not count:
            yield Skipped(path, "empty")


def _documents(path: Path, document: str, encoding: str) -> Iterator[str]:
    with _open_text(path, encoding) as file:
        if document == "file":
            text = file.read().strip()
            if text:
                yield text
            return
        paragraph: list[str] = []
        for line in file:
            if document == "paragraph" and line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph).strip()
                paragraph = []
            elif line.strip():
                yield line.strip()
        if paragraph:
            yield "".join(paragraph).strip()


def _open_text(path: Path, encoding: str) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding=encoding)
    return path.open(encoding=encoding)


def _not_utf8(path: str, offset: int, byte: int, encoding: str = "utf-8") -> UserError:
    return UserError(
        f"{path}: not {encoding.upper()} (byte 0x{byte:02x} near offset {offset}); convert it with"
        " `iconv -f latin1 -t utf-8`, or name its encoding with --encoding where the command has it"
    )
