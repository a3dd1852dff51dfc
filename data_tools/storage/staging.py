"""Work that gets its names only when all of it is there: a hidden folder with its files and a receipt for each job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.storage.locks import locked

PACKING, INDEXING, VERIFYING = ".pack", ".index", ".verify"
"""The hidden folders of work in progress."""
_PLAN = "plan.json"
_SHOWN = 8


@dataclass(frozen=True)
class Staging:
    """The work ``digest`` of a ``kind`` (`PACKING` …) below the folder ``out``; other input is other work.

    Whoever is stopped goes on from the receipts. Several processes may end the same work at once: a file is moved
    by one of them, and the others find it where it belongs.
    """

    out: Path
    kind: str
    digest: str

    @property
    def folder(self) -> Path:
        return self.out / self.kind / self.digest

    @property
    def receipts(self) -> Path:
        return self.folder / "receipts"

    @contextmanager
    def alone(self, part: str = "") -> Iterator[None]:
        """Within it, no other process does work of this kind, or this ``part`` of it, in the folder; others wait."""
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / f"{self.kind}{part}.lock", fleeting=True):
            yield

    def publish(self, name: str, target: Path) -> None:
        """Give a file of the folder its final name, unless it has it already.

        Raises:
            UserError: it is neither here nor there.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            (self.folder / name).replace(target)
        except (
            FileNotFoundError
        ):  # moved by an earlier attempt that was stopped, or by another process just now
            if not target.exists():
                raise UserError(f"{target}: is lost; remove {self.out / self.kind} and start again") from None

    def remove(self) -> None:
        """Remove all work of this kind, this one and what was left of others; another process may do so too."""
        shutil.rmtree(self.out / self.kind, ignore_errors=True)

    def describe_parts(self, jobs: int, parts: int) -> None:
        """Note that the work is ``jobs`` jobs, job i being done by part i mod ``parts``: for `describe_unfinished`."""
        write_atomically(self.folder / _PLAN, json.dumps({"jobs": jobs, "parts": parts}))


def describe_unfinished(folder: Path) -> str | None:
    """What is missing of a folder that was packed in part, and the remedy; None where nothing is being packed."""
    if not (folder / PACKING).is_dir():
        return None
    plans = {path.stat().st_mtime_ns: path for path in folder.glob(f"{PACKING}/*/{_PLAN}")}
    if not plans:
        return "packing was not finished; run the same `pack` command again, it goes on where it was"
    newest = plans[max(plans)]
    plan = json.loads(newest.read_bytes())
    done = {int(path.stem) for path in newest.parent.glob("receipts/*.json") if path.stem.isdigit()}
    missing = [job for job in range(plan["jobs"]) if job not in done]
    parts = sorted({job % plan["parts"] for job in missing})
    if not missing:
        return "all of it is packed, but the manifest is not written; run the same `pack` command once more"
    if plan["parts"] == 1:
        return f"{len(done)} of {plan['jobs']} jobs are packed; run the same `pack` command again, it goes on there"
    shown = ", ".join(f"{part}/{plan['parts']}" for part in parts[:_SHOWN])
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"packed in part only: --shard {shown}{more} is missing; run the same `pack` command with it"
