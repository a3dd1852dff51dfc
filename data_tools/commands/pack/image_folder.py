"""Image folders: labelled (one folder a class) or not; files are kept as they are, after a decoding check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.commands.pack.classes import label_files, skip_bare_folders, skip_strays
from data_tools.commands.pack.engine import Packed, Skipped, Source, stamp
from data_tools.commands.pack.pages import split_pages
from data_tools.decode.image import count_pages, is_cut_to_bytes
from data_tools.decode.kinds import IMAGE_EXTENSIONS
from data_tools.decode.options import DecodeError, DecodeOptions, MissingExtraError
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.order.permutation import derive_key, permute
from data_tools.storage.folders import walk_folder

FIRST_PAGE = "of several pages or frames, of which the first is read (--pages all makes a sample of each)"
NO_WHITE = "of 32 bits or floats, which do not say what is white (a run needs encoder.value_range)"
EIGHT_BITS = "HEIC or AVIF of more than 8 bits a channel, of which 8 are read"


def plan(
    folder: Path, shard_bytes: int, labels: str = "auto", classes: Path | None = None, pages: str = "first"
) -> Source:
    """Jobs of about ``shard_bytes`` each. ``labels``: "folder" (the first folder's name), "none", or "auto".

    Files are dealt to shards by a fixed permutation, so that no shard holds one class only. ``classes`` names the
    classes in the order of their numbers, see `read_class_names`. ``pages``: "first" or "all" of a file.

    Raises:
        UserError: no images; or it cannot be said which of the folders are classes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder that holds the images")
    walk = walk_folder(folder)
    skipped = [Skipped(str(path), reason) for path, reason in walk.passed_over]
    files = [path for path in walk.files if _extension(path) in IMAGE_EXTENSIONS]
    others = [path for path in walk.files if _extension(path) not in IMAGE_EXTENSIONS]
    skipped += [Skipped(str(path), _no_image(path)) for path in others]
    if not files:
        raise UserError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    labelled = label_files(
        {path: path.relative_to(folder) for path in files}, folder, labels, classes, "images"
    )
    files = labelled.files
    skipped += skip_strays(labelled.strays) + skip_bare_folders(labelled, walk.folders, folder, "images")
    keys = _unique_keys([path.relative_to(folder) for path in files])
    jobs: list[list[Any]] = [[]]
    room = shard_bytes
    for i in permute(np.arange(len(files)), len(files), derive_key(0)).tolist():
        size = _size_of(files[i])
        if size > room and jobs[-1]:
            jobs.append([])
            room = shard_bytes
        room -= size
        jobs[-1].append([str(files[i]), keys[i], labelled.labels[i], pages])
    about = {"source": folder.name, **({"classes": labelled.classes} if labelled.classes else {})}
    return Source(read, jobs, about, stamp=stamp(files), skipped=skipped)


def _extension(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _no_image(path: Path) -> str:
    kind = f".{_extension(path)} files" if path.suffix else "files without an extension"
    return f"{kind}: not an image format that is read"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a dangling link: reading it says so


def _unique_keys(paths: list[Path]) -> list[str]:
    """Keys from relative paths: no dots in the last part (they would start the extension), none twice."""
    keys: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = (path.parent / path.stem.replace(".", "_")).as_posix()
        key, number = base, 1
        while key in taken:
            key, number = f"{base}_{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _note(data: bytes, image: np.ndarray) -> str:
    """What the user is told of a sound image, if anything."""
    if image.dtype not in (np.uint8, np.uint16):
        return NO_WHITE
    return EIGHT_BITS if is_cut_to_bytes(data) else ""


def read(job: list[Any]) -> Iterator[Packed | Skipped]:
    """The samples of a job: [path, key, class number or None, "first" or "all" pages] of each file."""
    for name, key, label, pages in job:
        labels = {} if label is None else {"cls": str(label).encode()}
        try:
            data = Path(name).read_bytes()
            if not data:
                yield Skipped(name, "empty: 0 bytes")
                continue
            extension = _extension(Path(name))
            image = decode_sample(key, {extension: memoryview(data)}, DecodeOptions())["image"]
            several = count_pages(data) > 1
            if several and pages == "all":
                for number, (form, page) in enumerate(split_pages(data, DecodeOptions())):
                    yield Packed(f"{key}_page{number:05d}", {form: page, **labels})
                continue
        except OSError as error:
            yield Skipped(name, f"cannot be read: {error.strerror or error}")
        except MissingExtraError as error:
            yield Skipped(name, f"not installed: {error}")
        except DecodeError as error:
            yield Skipped(name, f"damaged: {error}")
        else:
            yield Packed(key, {extension: data, **labels}, note=FIRST_PAGE if several else _note(data, image))
