"""Which folders are classes, and by which numbers: those of the folder itself, or of data packed before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_tools.commands.pack.engine import Skipped
from data_tools.errors import UserError, nearest
from data_tools.formats.manifest import MANIFEST_NAME, read_manifest
from data_tools.storage.folders import SYSTEM

SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "holdout"}
)
"""Names of folders that say what samples are for, not what they show."""


STRAYS = 0.05
"""Share of the files that may lie beside the class folders without a question being asked."""


@dataclass(frozen=True)
class Labelled:
    """Which of the files go into the pack: with a class each, or all without one."""

    files: list[Path]
    labels: list[int | None]
    """The class number of each file."""
    classes: list[str]
    """By number; empty where there are no labels."""
    strays: list[Path]
    """Files that have no class where the others have one."""


def label_files(
    names: Mapping[Path, PurePath], asked: Path, labels: str, source: Path | None, kind: str, least: int = 1
) -> Labelled:
    """The first folder of each file as its class.

    Args:
        names: the files, and what each is called within what was ``asked`` for.
        labels: "folder" makes classes, "none" makes none; "auto" makes them where there are ``least`` folders.
        source: what numbers the classes, see `read_class_names`.
        kind: the word after `pack`, for messages.

    Raises:
        UserError: it cannot be said which of the folders are classes, or there are none.
    """
    folders = {path: name.parts[0] for path, name in names.items() if len(name.parts) > 1}
    if labels == "auto":
        found = set(folders.values())
        labels = "folder" if _are_classes(asked, found, len(folders), len(names), kind, least) else "none"
    if labels == "none":
        if source is not None:
            raise UserError(
                f"--classes {source}: {asked} is packed without labels; sort the files into class folders"
            )
        return Labelled(list(names), [None] * len(names), [], [])
    if not folders:
        raise UserError(
            f"{asked}: its files lie outside of class folders; use --labels none, or sort them into folders"
        )
    numbers = number_classes(folders.values(), source, asked)
    strays = [path for path in names if path not in folders]
    return Labelled(list(folders), [numbers[name] for name in folders.values()], list(numbers), strays)


def _are_classes(asked: Path, folders: set[str], inside: int, total: int, kind: str, least: int) -> bool:
    """Whether folders are classes; raises UserError where that is a question."""
    if len(folders) < least:
        return False
    refuse_splits(asked, folders, kind)
    strays = total - inside
    if strays > STRAYS * total or (strays and len(folders) < 2):
        raise UserError(
            f"{asked}: {inside:,} files lie in {len(folders):,} folders, {strays:,} beside them; say --labels "
            "folder (folders are classes, and those beside are left out) or --labels none (all, without labels)"
        )
    return True


def skip_strays(strays: Iterable[Path]) -> list[Skipped]:
    """What is listed of files that have no class."""
    return [Skipped(str(path), "beside the class folders: has no class") for path in strays]


def skip_bare_folders(labelled: Labelled, folders: Iterable[Path], asked: Path, kind: str) -> list[Skipped]:
    """What is listed of folders that stand among the class folders of ``asked`` and have nothing to read below."""
    if not labelled.classes:
        return []
    used = {path.relative_to(asked).parts[0] for path in labelled.files}
    bare = [path for path in folders if path.parent == asked and path.name not in used]
    return [Skipped(str(path), f"class folder without {kind}") for path in bare]


def number_classes(found: Iterable[str], source: Path | None, place: Path) -> dict[str, int]:
    """Class name → number: those found, by alphabet; or those of ``source``, see `read_class_names`.

    Raises:
        UserError: a class was found that ``source`` does not name.
    """
    classes = sorted(set(found))
    if source is None:
        return {name: number for number, name in enumerate(classes)}
    names = read_class_names(source)
    strange = [name for name in classes if name not in names]
    if strange:
        raise UserError(
            f"{place}: class {strange[0]!r} is not among the {len(names)} of --classes {source};"
            f"{nearest(strange[0], names)} add it there, or leave its folder out"
        )
    return {name: number for number, name in enumerate(names)}


def read_class_names(source: Path) -> list[str]:
    """The class names, in their order, of a packed folder, a folder of class folders, or a file with one name a line.

    Raises:
        UserError: there are none, or one stands there twice.
    """
    if (source / MANIFEST_NAME).is_file():
        names = list(read_manifest(source / MANIFEST_NAME).about.get("classes") or [])
    elif source.is_dir():
        names = sorted(
            path.name
            for path in source.iterdir()
            if path.is_dir() and not path.name.startswith(".") and path.name not in SYSTEM
        )
    elif source.is_file():
        names = _read_names(source)
    else:
        raise UserError(f"--classes {source}: there is no such file or folder")
    names = [str(name) for name in names]
    if not names:
        raise UserError(
            f"--classes {source}: names no classes; give a labelled pack, a folder of classes, or a file"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--classes {source}: names {twice!r} twice; leave one out")
    return names


def _read_names(path: Path) -> list[str]:
    """The names in a file: a JSON list, or one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise UserError(f"--classes {path}: not UTF-8 ({error}); write one name a line") from None
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise UserError(f"--classes {path}: not a JSON list ({error}); write one name a line") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def refuse_splits(folder: Path, names: Iterable[str], source: str) -> None:
    """Raise a UserError where a folder's folders are splits, which must not become classes by themselves.

    Args:
        source: the word after `pack`, for the commands that are named.
    """
    splits = sorted(set(names))
    if not splits or not {name.lower() for name in splits} <= SPLITS:
        return
    first = next((name for name in splits if name.lower().startswith("train")), splits[0])
    commands = [f"`pack {source} {folder / first} OUT/{first}`"]
    commands += [
        f"`pack {source} {folder / name} OUT/{name} --classes OUT/{first}`"
        for name in splits
        if name != first
    ]
    raise UserError(
        f"{folder}: {', '.join(splits)} look like splits, not classes; pack each by itself: {', then '.join(commands)};"
        " or say --labels folder if they are classes, --labels none for no labels"
    )
