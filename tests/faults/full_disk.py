"""A disk that is soon full: a small tmpfs, mounted for one process alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.processes import environment

FULL = re.compile(
    r"no space left on (?P<device>\S+) \((?P<mount>\S+)\)"
    r"(?:, (?P<needed>[\d.,]+ (?:bytes|[kMGT]B)) needed)?, (?P<free>[\d.,]+ (?:bytes|[kMGT]B)) free"
)


def on_a_small_disk(
    folder: Path, size: str, command: list[str], copied: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that finds a disk of that size in `folder`, with what `copied` holds; it is gone afterwards.

    Args:
        size: as `mount` takes it: 1m.
    """
    fill = f"cp -a {copied}/. {folder} && " if copied else ""
    script = f'mount -t tmpfs -o size={size} small {folder} && {fill}"$@"'
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine permits no mount namespaces")
    return subprocess.run(
        [*inside, "sh", "-c", script, "sh", *command],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
