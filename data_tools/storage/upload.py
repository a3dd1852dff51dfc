"""Writing beside the objects of a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_tools.errors import UserError
from data_tools.storage.objects import PATIENT, MissingError, Retry, open_filesystem, redacted, with_retries
from data_tools.storage.urls import is_http


def upload(folder: Path, names: Sequence[str], base: str, retry: Retry = PATIENT) -> None:
    """Copy files of a folder, named relative to it, to the same names below the URL ``base``, in this order.

    Raises:
        UserError: nothing can be written there.
    """
    if is_http(base):
        raise UserError(
            f"{redacted(base)}: a web server cannot be written to; give a local folder with --output"
        )
    filesystem, path = open_filesystem(base, retry.storage)

    def put(name: str) -> None:
        filesystem.pipe_file(f"{path}/{name}", (folder / name).read_bytes())

    try:
        for name in names:
            with_retries(partial(put, name), base, retry)
    except MissingError as error:
        raise UserError(f"{error}: cannot be written to; give a local folder with --output") from None
