"""The files below a folder, as a person who looks into it sees them: through links, past hidden and system folders."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

SYSTEM = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__pycache__",
    }
)
"""Folders that systems and their thumbnails live in, beside those whose names begin with a dot."""


@dataclass(frozen=True)
class Walk:
    """What lies below a folder, sorted by path."""

    files: list[Path]
    folders: list[Path]
    """Those that were read, empty ones too; not the one that was asked for."""
    passed_over: list[tuple[Path, str]]
    """Hidden files and folders, loops, broken links and what cannot be opened, each with the reason."""


def walk_folder(folder: Path) -> Walk:
    """The files below ``folder``, a link to a folder being followed as if it were that folder.

    Each folder is read once: not where a link leads back to what it lies in, nor where it leads to what is read anyway.
    """
    files: list[Path] = []
    read: list[Path] = []
    passed_over: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        place = folders.popleft() if folders else links.popleft()
        try:
            if reason := _refuse(place, seen, place == folder):
                passed_over.append((place, reason))
                continue
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            passed_over.append((place, f"cannot be opened: {error.strerror}"))
            continue
        if place != folder:
            read.append(place)
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith(".") or entry.name in SYSTEM:
                passed_over.append((path, "hidden"))
            elif entry.is_symlink() and not path.exists():
                passed_over.append((path, f"broken link: {path.readlink()} is not there"))
            elif entry.is_file():
                files.append(path)
            elif not entry.is_dir():  # whoever reads a pipe waits for ever
                passed_over.append((path, "no file: a pipe, socket or device"))
            elif entry.is_symlink():
                links.append(path)
            else:
                folders.append(path)
    return Walk(sorted(files), sorted(read), sorted(passed_over))


def _refuse(place: Path, seen: set[tuple[int, int]], asked_for: bool) -> str:
    """Why a folder is not read, or "" where it is, and is among the ``seen`` ones from now on."""
    if place.is_symlink() and not asked_for and place.parent.resolve().is_relative_to(place.resolve()):
        return "loop: a link to a folder that it lies in"
    status = place.stat()
    if (status.st_dev, status.st_ino) in seen:
        return "link: its folder is read already"
    seen.add((status.st_dev, status.st_ino))
    return ""
