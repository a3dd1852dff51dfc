"""Checkpoints at a URL, as `<url>/step_########`: on a store without renames, the manifest makes one valid.

So the manifest is written last and deleted first, and what lies there without one is no checkpoint.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from data_tools.errors import UserError
from data_tools.storage.objects import (
    MissingError,
    Retry,
    open_filesystem,
    read_all,
    read_whole,
    redacted,
    with_retries,
)
from pretrain.checkpoint.folder import MANIFEST, find_broken_file, make_anew, read_manifest
from pretrain.checkpoint.pickles import refuse_code

T = TypeVar("T")
NAME = re.compile(r"step_\d+")
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"})
"""Without folders; what fsspec would make there is a bucket, from a mistyped name."""


class Store:
    """One place for checkpoints. Errors that pass are waited for; those that do not are OSError or UserError."""

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        """Raises UserError: nothing that is installed opens such a URL."""
        self.url = url.rstrip("/")
        self.place = redacted(self.url)
        self.retry = retry or Retry()
        self.filesystem, self.root = open_filesystem(self.url)

    def patiently(self, attempt: Callable[[], T], name: str = "") -> T:
        return with_retries(attempt, f"{self.url}/{name}".rstrip("/"), self.retry)

    def names(self) -> list[str]:
        """Of all checkpoints, whole or not, oldest first."""

        def attempt() -> list[str]:
            self.filesystem.invalidate_cache()
            try:
                return list(self.filesystem.ls(self.root, detail=False))
            except FileNotFoundError:  # nothing has been written yet
                return []

        found = {PurePosixPath(path.rstrip("/")).name for path in self.patiently(attempt)}
        return sorted(name for name in found if NAME.fullmatch(name))

    def complete(self) -> list[str]:
        """Of those with a manifest, oldest first."""
        return [name for name in self.names() if self.is_complete(name)]

    def is_complete(self, name: str) -> bool:
        path = f"{self.root}/{name}/{MANIFEST}"
        return bool(self.patiently(lambda: self.filesystem.exists(path), name))

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        try:
            return read_all(f"{self.url}/{name}", self.retry)
        except MissingError:
            return None

    def upload(self, checkpoint: Path) -> None:
        """Copy a checkpoint, unless the same one is there already. One that is damaged here is not copied."""
        name, manifest = checkpoint.name, (checkpoint / MANIFEST).read_bytes()
        if self.read(f"{name}/{MANIFEST}") == manifest:
            return
        fault = find_broken_file(checkpoint)
        if fault:
            raise UserError(f"{checkpoint}/{fault}")
        self.forget(name)
        for file in [*read_manifest(manifest), MANIFEST]:
            self.put(checkpoint / file, f"{name}/{file}")

    def put(self, source: Path, name: str) -> None:
        """Copy one file, and see that all of it has arrived."""
        path, size = f"{self.root}/{name}", source.stat().st_size

        def attempt() -> None:
            if self.url.partition("://")[0] not in OBJECT_STORES:
                self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.filesystem.put_file(str(source), path)
            self.filesystem.invalidate_cache()
            arrived = self.filesystem.size(path)
            if arrived != size:
                raise ConnectionError(f"{arrived} of {size} bytes arrived")

        self.patiently(attempt, name)

    def forget(self, name: str) -> None:
        """Delete a checkpoint, its manifest first."""

        def attempt() -> None:
            self.filesystem.invalidate_cache()
            for path in (f"{self.root}/{name}/{MANIFEST}", f"{self.root}/{name}"):
                with suppress(FileNotFoundError):
                    self.filesystem.rm(path, recursive=True)

        self.patiently(attempt, name)

    def download(self, name: str, folder: Path) -> Path:
        """Copy a checkpoint into a folder, where it gets its name once it has been found valid.

        Raises:
            UserError, OSError: it is damaged, or cannot be read.
        """
        partial, final = folder / f".{name}.partial", folder / name
        make_anew(partial)
        try:
            self.fetch(name, partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return final

    def fetch(self, name: str, folder: Path) -> None:
        manifest = read_all(f"{self.url}/{name}/{MANIFEST}", self.retry)
        try:
            files = read_manifest(manifest)
        except ValueError as error:
            raise UserError(f"{self.place}/{name}/{MANIFEST} cannot be read ({error})") from None
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            read_whole(f"{self.url}/{name}/{file}", folder / file, self.retry)
        (folder / MANIFEST).write_bytes(manifest)
        fault = find_broken_file(folder)
        if fault:
            raise UserError(f"{self.place}/{name}/{fault}")
        refuse_code(folder, f"{self.place}/{name}")


def download_newest(url: str, folder: Path) -> Path:
    """Copy the checkpoint that a URL names, or the newest valid one there, into a folder that holds nothing else then.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    parent, _, last = url.rstrip("/").rpartition("/")
    store = Store(parent if NAME.fullmatch(last) else url)
    faults: list[str] = []
    make_anew(folder)
    try:
        for name in [last] if NAME.fullmatch(last) else reversed(store.complete()):
            try:
                return store.download(name, folder)
            except (OSError, UserError) as error:
                faults.append(str(error))
    except OSError as error:
        faults.append(str(error))
    raise UserError(
        f"init_from={redacted(url)}: no valid checkpoint ({'; '.join(faults) or 'none there'}); give the target of a "
        "run (checkpoint.targets) or one checkpoint in it"
    )
