"""The folder of a comparison. Whatever has been found stands there as JSON, so that a restart finds it only once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from pretrain.compare.jobs import JobFailedError
from pretrain.compare.options import Options

SETTINGS, PLAN = "settings.json", "plan.json"
Found = dict[str, Any]


def remember(path: Path, find: Callable[[], Found]) -> Found:
    """What the file at `path` holds; where there is none, what `find` finds, which is then kept there."""
    if not path.exists():
        write_atomically(path, json.dumps(find(), indent=1) + "\n")
    found: Found = json.loads(path.read_text("utf-8"))
    return found


def attempt(path: Path, find: Callable[[], Found]) -> Found:
    """The same of what may fail, which is then remembered too: `{failed: reason}`."""

    def find_or_tell() -> Found:
        try:
            return find()
        except (JobFailedError, UserError) as error:
            return {"failed": str(error)}

    return remember(path, find_or_tell)


def claim_folder(options: Options) -> None:
    """Write the folder's `settings.json`, or compare it with the one that is there.

    Until the budget is shared out, another one makes no other comparison: what was measured stays.

    Raises:
        UserError: the folder holds another comparison, or something else.
    """
    path, now = options.out / SETTINGS, options.identity()
    others = [entry.name for entry in options.out.iterdir() if entry.name != "lock"]
    if others and not path.exists():
        raise UserError(f"--out {options.out}: is not empty and holds no comparison; choose another folder")
    before = remember(path, lambda: now)
    for key in now:
        planned = key != "budget" or (options.out / PLAN).exists()
        if planned and before.get(key) != now[key]:
            raise UserError(
                f"--out {options.out}: holds a comparison with {key}={before.get(key)!r}, not {now[key]!r}; choose "
                "another folder, or remove that one"
            )
    write_atomically(path, json.dumps(now, indent=1) + "\n")
