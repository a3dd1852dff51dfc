"""Mistakes a user can make, told in one line, and the way every command line tells them."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input or settings: the message says what was wrong, where, and what to do about it."""


class OneRankError(UserError):
    """Bad input that only this rank may have met, such as its share of the data."""


LOST_PEER = ("connection reset by peer", "connection closed by peer", "timed out waiting", "broken pipe")


def run_cli(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 for a user's mistake (one line on stderr), 130 for Ctrl-C.

    Under `torchrun` every rank meets the same mistake, and only rank 0 tells it, unless it is one rank's own. A rank
    that merely lost another says so in one line (exit status 1): the other one's error is what counts.
    """
    rank = os.environ.get("RANK", "0")
    try:
        return main()
    except UserError as error:
        own = isinstance(error, OneRankError) and "RANK" in os.environ
        if rank == "0" or own:
            print(f"error{f' (rank {rank})' if own else ''}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(sign in str(error).lower() for sign in LOST_PEER):
            raise
        why = str(error).splitlines()[0]
        print(
            f"rank {rank}: lost another rank, whose error is above or on another machine; started again, the run "
            f"goes on from its newest checkpoint ({why})",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def nearest(word: str, known: list[str]) -> str:
    """` did you mean 'x'?`, or nothing when no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" did you mean {match[0]!r}?" if match else ""
