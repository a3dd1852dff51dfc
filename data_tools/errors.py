"""Mistakes a user can make, told in one line, and the way every command line tells them."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input or settings: the message says what was wrong, where, and what to do about it."""


class OneRankError(UserError):
    """Bad input that only this rank may have met, such as its share of the data."""


PLACES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip
"""What is wrong with a place that a user chose, or with its disk, and never with the program."""
LOST_PEER = ("connection reset by peer", "connection closed by peer", "timed out waiting", "broken pipe")


def run_cli(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 for a user's mistake (one line on stderr), 130 for Ctrl-C.

    A place that cannot be read or written, and a full disk, are the user's to mend too.

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
    except OSError as error:
        if error.errno not in PLACES:
            raise
        place = f" (rank {rank})" if "RANK" in os.environ else ""
        print(f"error{place}: {describe_place(error)}", file=sys.stderr)
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


def describe_place(error: OSError) -> str:
    """The place, what is wrong with it, and the remedy, in one line."""
    remedy = (
        "make room, or choose another disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "choose another place, or change its permissions"
    )
    reason = error.strerror or type(error).__name__
    reason = reason[:1].lower() + reason[1:]
    return f"{f'{error.filename}: ' if error.filename else ''}{reason}; {remedy}"


def nearest(word: str, known: list[str]) -> str:
    """` did you mean 'x'?`, or nothing when no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" did you mean {match[0]!r}?" if match else ""
