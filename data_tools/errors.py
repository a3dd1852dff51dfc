"""Mistakes a user can make, told in one line, and the way every command line tells them."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input or settings: the message says what was wrong, where, and what to do about it."""


def run_cli(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 for a user's mistake (one line on stderr), 130 for Ctrl-C.

    Under `torchrun` every rank meets the same mistake; only rank 0 tells it.
    """
    try:
        return main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def nearest(word: str, known: list[str]) -> str:
    """` did you mean 'x'?`, or nothing when no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" did you mean {match[0]!r}?" if match else ""
