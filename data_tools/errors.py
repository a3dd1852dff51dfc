"""Mistakes a user can make, told in one line, and the way every command line tells them."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_tools.storage.urls import redact_urls


class UserError(ValueError):
    """Bad input or settings: the message says what was wrong, where, and what to do about it."""


class OneRankError(UserError):
    """Bad input that only this rank may have met, such as its share of the data."""


@contextmanager
def mistakes_of_one_rank() -> Iterator[None]:
    """Within it, a user's mistake is a `OneRankError`: other ranks need not have met it, so nobody waits for them."""
    try:
        yield
    except OneRankError:
        raise
    except UserError as error:
        raise OneRankError(str(error)) from None


PLACES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip
"""What is wrong with a place that a user chose, or with its disk, and never with the program."""
TOLD = "has_been_told"
"""The attribute of an error that has been printed."""
PATIENCE = 5.0
"""Seconds within which a launcher ends a rank after rank 0 has failed."""
STDOUT_CLOSED = 128 + signal.SIGPIPE
"""The exit status that a shell gives a program which SIGPIPE ends."""
LACK_OF_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")
"""What torch and Python say in a RuntimeError where there is no memory to be had."""
LOST_PEER = ("connection reset by peer", "connection closed by peer", "timed out waiting", "broken pipe")


def printable(text: str) -> str:
    """The text as UTF-8 can hold it: bytes of a file's or member's name that are no UTF-8 are shown as ``\\udce9``.

    Python keeps such a byte as a lone surrogate, which cannot be written or printed; the sample keeps its real key.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    r"""Text for one line of a terminal: as `printable`, with line ends and control characters as ``\n``, ``\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), printable(text))


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def run_cli(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: its own, or that of an error, which is told; see `tell_error`.

    An error that is the program's own, and has not been told before, is raised.
    """
    try:
        print_any_text()
        status = main()
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and stdout_is_closed():
            return STDOUT_CLOSED
        if describe_error(error) is None and not getattr(error, TOLD, False):
            raise
        return tell_error(error)


def print_any_text() -> None:
    """Let stdout show what its encoding lacks as an escape, such as a file's name that is not UTF-8, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def stdout_is_closed() -> bool:
    """Whether nobody reads what is printed any more (`… | head`); what is left to print then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def tell_error(error: BaseException) -> int:
    """Print an error to stderr, once however often it is called, and return the exit status that it stands for.

    2 with one line for a user's mistake, to which belong a place that cannot be read or written and a full disk; 130
    for Ctrl-C; else 1, with the traceback.

    Under `torchrun` every rank meets the same mistake, and rank 0 tells it; another rank does where it has not been
    ended some seconds later, for then rank 0 has not met it. A rank that merely lost another says so in one line: the
    other one's error is what counts.
    """
    trace = "".join(traceback.format_exception(error)).rstrip()
    status, text = describe_error(error) or (1, trace)
    if text and not getattr(error, TOLD, False):
        if is_shared(error):
            wait_for_the_end()
        print(redact_urls(text), file=sys.stderr, flush=True)
    setattr(error, TOLD, True)
    return status


def as_told(error: UserError) -> UserError:
    """An error that another rank tells."""
    setattr(error, TOLD, True)
    return error


def is_shared(error: BaseException) -> bool:
    """Whether rank 0 tells this error of another rank, unless this rank has met it alone."""
    shared = isinstance(error, UserError) and not isinstance(error, OneRankError)
    return shared and os.environ.get("RANK", "0") != "0"


def wait_for_the_end() -> None:
    """Let the launcher end this process meanwhile, as it does with the ranks that are left when one has failed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(PATIENCE)


def describe_error(error: BaseException) -> tuple[int, str] | None:
    """The exit status and this rank's line, empty where it is another's to tell; None for what was not foreseen."""
    rank = os.environ.get("RANK")
    place = "" if rank is None else f" (rank {rank})"
    if isinstance(error, UserError):
        own = isinstance(error, OneRankError) or is_shared(error)
        return 2, f"error{place if own else ''}: {error}"
    if isinstance(error, OSError) and error.errno in PLACES:
        return 2, f"error{place}: {describe_place(error)}"
    if lacks_memory(error):
        reason = str(error).strip().partition("\n")[0]
        return 2, (
            f"error{place}: {describe_lack(reason)}; give it more (the job's memory, `ulimit -v`, `ulimit -u`), "
            "or ask less of it: smaller batches, fewer workers"
        )
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted" if rank in (None, "0") else ""
    if isinstance(error, RuntimeError) and rank and any(sign in str(error).lower() for sign in LOST_PEER):
        why = str(error).splitlines()[0]
        return 1, (
            f"rank {rank}: lost another rank, whose error is above or on another machine; started again, the run "
            f"goes on from its newest checkpoint ({why})"
        )
    return None


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory, or a thread and with it the memory of its stack, cannot be had."""
    told = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LACK_OF_MEMORY)
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM  # as by mmap
    return isinstance(error, MemoryError) or refused or told


def describe_lack(reason: str) -> str:
    """What cannot be had, in some words."""
    if "thread" in reason:
        return "no more threads can be started, for memory or the number of threads is limited"
    kind = "device" if "CUDA" in reason else "host"
    return f"out of {kind} memory{f' ({reason})' if reason else ''}"


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
