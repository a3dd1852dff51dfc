"""What a user writes short for many: braces and patterns, of this machine and of object stores."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from data_tools.dataset.shard_files import TARS
from data_tools.errors import UserError
from data_tools.storage.objects import Retry, list_objects
from data_tools.storage.urls import is_http, is_remote, redacted

MOST = 1_000_000
"""Names that braces may stand for."""


def expand(source: str | Path | Sequence[str | Path], retry: Retry) -> list[str]:
    """The paths and URLs that a source names: ``{000000..000099}`` written out, patterns (``*``) by what is there.

    What is written out need not be there; a pattern that nothing fits is an empty list. A path that is there is taken
    as it is, whatever its name is.

    Raises:
        UserError: braces that do not close, or stand for too many; a pattern of an http server, which lists nothing; an
            empty name.
    """
    if not isinstance(source, str | Path):
        return [name for one in source for name in expand(one, retry)]
    text = str(source)
    if not text:
        raise UserError("a data set's name is empty; give a folder, a URL, or sample:NAME")
    if not is_remote(text) and Path(text).expanduser().exists():
        return [text]
    found: list[str] = []
    for name in expand_braces(text):
        if not has_pattern(name):
            found.append(name)
        elif is_remote(name):
            found += list_objects(name, retry)
        else:
            found += leave_out_companions(sorted(glob.glob(expand_home(name))))  # noqa: PTH207
    return found


def expand_braces(text: str) -> list[str]:
    """``{a,b}`` and ``{000..099}`` written out, as the shell and webdataset do it."""
    if "{" not in text:
        return [text]
    try:
        names = list(islice(braceexpand(text, escape=False), MOST + 1))
    except ValueError:  # UnbalancedBracesError
        raise UserError(f"{redacted(text)}: its braces do not close; write {{000000..000099}}") from None
    if len(names) > MOST:
        raise UserError(f"{redacted(text)}: stands for more than {MOST:,} names")
    return names


def has_pattern(name: str) -> bool:
    """Whether it is a pattern. A ``?`` begins a query in a URL, and brackets may stand in any; a path has all three."""
    if is_remote(name):
        return "*" in (name.partition("?")[0] if is_http(name) else name)
    return glob.has_magic(name)


def leave_out_companions(paths: list[str]) -> list[str]:
    """Without the files that lie beside tars: ``shards/*`` means the shards."""
    return [path for path in paths if path.lower().endswith(TARS) or Path(path).is_dir()] or paths


def expand_home(path: str) -> str:
    """``~`` written out."""
    return str(Path(path).expanduser())
