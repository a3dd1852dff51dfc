"""Whoever stops reading (`… | head`) ends a command quietly."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = (
    "import sys; from data_tools.errors import run_cli; sys.exit(run_cli(lambda: print('x' * {size}) or 0))"
)


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["at the end", "in the middle"])
def test_a_command_whose_output_nobody_reads_ends_without_a_traceback(size):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(size=size)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
