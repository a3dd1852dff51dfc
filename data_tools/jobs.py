"""Work cut into jobs: on all cores or on a cluster's executor, with a progress bar, resuming where it stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically

Receipt = dict[str, Any]  # what a job returns: JSON-able, with "samples" and "bytes" for the rate
Work = Callable[[Any], Receipt]


def run_jobs(
    work: Work, jobs: Sequence[Any], title: str, receipts: Path | None = None,
    processes: int | None = None, part: tuple[int, int] = (0, 1), executor: Executor | None = None,
    quiet: bool = False,
) -> list[Receipt] | None:  # fmt: skip
    """Run ``work`` on every job; results in the order of the jobs.

    Each result is kept as a receipt in the folder ``receipts``, and a job that has one is not done again. ``part``
    (k, n) does jobs ≡ k (mod n) only; None is returned while receipts of the other parts are missing. ``work`` goes to
    each process once, so that it may hold a manifest; an ``executor`` takes it with every job.
    """
    kept = _read_receipts(receipts, {})
    mine = [i for i in range(part[0], len(jobs), part[1]) if i not in kept]
    workers = min(processes or os.cpu_count() or 1, len(mine))
    with _progress(title, len(range(part[0], len(jobs), part[1])), len(mine), quiet) as advance:
        if executor is None and workers <= 1:
            for i in mine:
                kept[i] = _run_one(work, receipts, jobs[i], i)
                advance(kept[i])
        else:
            with executor or _pool(workers, work, receipts) as pool:
                run = partial(_run_one, work, receipts) if executor else _run_own
                waiting = {pool.submit(run, jobs[i], i): i for i in mine}
                try:
                    for future in as_completed(waiting):
                        kept[waiting[future]] = future.result()
                        advance(future.result())
                except BaseException:
                    _cancel(list(waiting))
                    raise
    kept = _read_receipts(receipts, kept)
    return [kept[i] for i in range(len(jobs))] if len(kept) == len(jobs) else None


_own: Callable[[Any, int], Receipt]
"""What this process of a pool does with (job, its number); set when it starts."""


def _pool(workers: int, work: Work, receipts: Path | None) -> ProcessPoolExecutor:
    # spawn: a fork would copy locks held by threads of the parent
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (work, receipts))


def _start_process(work: Work, receipts: Path | None) -> None:
    global _own  # noqa: PLW0603 - a process of a pool has no other place for what it was started with
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _own = partial(_run_one, work, receipts)


def _run_own(job: Any, number: int) -> Receipt:
    return _own(job, number)


def _cancel(futures: list[Future[Receipt]]) -> None:
    for future in futures:
        future.cancel()


def _run_one(work: Work, receipts: Path | None, job: Any, number: int) -> Receipt:
    result = work(job)
    if receipts is not None:
        write_atomically(receipts / f"{number:06d}.json", json.dumps(result).encode())
    return result


def _read_receipts(folder: Path | None, known: dict[int, Receipt]) -> dict[int, Receipt]:
    """The receipts that are there by now, by number, beside those that are known.

    They are listed, not asked for by name: NFS remembers for a minute that a file was not there, but lists a folder
    anew once this machine has written to it. So of the tasks that end together, the last to write sees all receipts.
    """
    found = dict(known)
    for path in folder.iterdir() if folder is not None and folder.is_dir() else ():
        if path.suffix == ".json" and path.stem.isdigit() and int(path.stem) not in found:
            with suppress(FileNotFoundError):  # another task has finished the work, and removes them
                found[int(path.stem)] = json.loads(path.read_bytes())
    return found


class _progress:  # noqa: N801 - used as a function
    """A bar on a terminal, else one line at the end: jobs, samples/s, MB/s, time left."""

    def __init__(self, title: str, total: int, left: int, quiet: bool) -> None:
        self._title, self._begin, self._quiet = title, time.perf_counter(), quiet
        self._samples = self._bytes = 0
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = (
            Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() and not quiet else None
        )
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=total, completed=total - left, rate="")

    def __enter__(self) -> Callable[[Receipt], None]:
        if self._bar is not None:
            self._bar.start()
        return self._advance

    def _advance(self, receipt: Receipt) -> None:
        self._samples += receipt.get("samples", 0)
        self._bytes += receipt.get("bytes", 0)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=self._rate())

    def _rate(self) -> str:
        seconds = max(1e-9, time.perf_counter() - self._begin)
        return f"{self._samples / seconds:,.0f} samples/s  {self._bytes / seconds / 1e6:,.1f} MB/s"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._samples and not self._quiet:
            seconds = time.perf_counter() - self._begin
            print(
                f"{self._title}: {self._samples:,} samples in {seconds:.1f} s, {self._rate()}",
                file=sys.stderr,
            )


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster as an executor; raises UserError when there is none at the address."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask: Dask is not installed; `pip install masquerade[cluster]`") from None
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--dask {address}: no cluster answers there ({type(error).__name__}); start one first"
        ) from None
    with client:
        yield client.get_executor()


def parse_part(text: str) -> tuple[int, int]:
    """ "3/8" → (3, 8): the fourth of eight parts; raises UserError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise UserError(f"--shard {text}: must be k/n with 0 ≤ k < n, such as 0/8")
    return int(number), int(count)
