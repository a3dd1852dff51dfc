"""`python -m pretrain batch-find RECIPE`: the largest micro-batch that fits into memory, and the fastest.

Each size is tried in processes of its own, one a rank. So a try finds the memory as a run would, and not in the
fragments that the one before left; a limit can be set on a host's memory; and no rank waits for another that ran out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from data_tools.errors import UserError, lacks_memory
from pretrain.config.check import check_world_size
from pretrain.config.sections import Config
from pretrain.guards.out_of_memory import OutOfMemoryError
from pretrain.run.dry_run import dry_run

GIB = 2**30
STEPS = 4
"""Of each try: the first compiles and allocates, and the fastest of the others tells the throughput."""
PASSES = 16
"""Micro-batches of a step at most: more need no more memory, and tell no more."""
SHARE_OF_FREE = 0.9
"""Of a host's free memory, what the ranks may use together where no limit is given."""
PATIENCE = 5.0
"""Seconds in which the other ranks of a failed try may say what they met."""


@dataclass(frozen=True)
class Try:
    """What a micro-batch size that fits came to."""

    size: int
    samples_per_second: float
    """Over all ranks."""
    peak_bytes: int
    """Of the rank that needed most: of its GPU's memory, or where there is none, of its own."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that were tried: those that fit, and those that do not."""

    fitting: dict[int, Try]
    too_large: list[int]

    @property
    def largest(self) -> int:
        return max(self.fitting)

    @property
    def fastest(self) -> int:
        return max(self.fitting.values(), key=lambda found: found.samples_per_second).size

    def describe(self, share: int) -> str:
        """What to set, in a sentence; `share` is a rank's part of the global batch."""
        whole = " (all of a rank's share)" if self.largest == share else ""
        limit = f"; {min(self.too_large)} does not" if self.too_large else ""
        fast = self.fitting[self.fastest]
        return (
            f"largest that fits: {self.largest}{whole}{limit}\n"
            f"fastest that fits: train.micro_batch_size={fast.size} ({fast.samples_per_second:,.1f} samples/s); the "
            "result of training is the same with each of them"
        )


def batch_find(
    config: Config, ranks: int = 1, memory_gib: float | None = None, tell: Callable[[str], object] = print
) -> Sizes:
    """Try micro-batch sizes of the recipe on `ranks` processes of this machine.

    Args:
        memory_gib: that each rank may use: of its GPU, or where there is none, of the host.
        tell: is handed a line for each try.
    Raises:
        UserError: not even the smallest fits, or what would stop the run for another reason.
    """
    check_place(ranks, memory_gib)
    train = replace(config.train, micro_batch_size=None)
    config = replace(config, train=train)
    check_world_size(config, ranks)
    limit = memory_limit(ranks, memory_gib)
    if limit:
        tell(f"each of {ranks} rank(s) may use {limit / GIB:.2f} GiB (--memory-gib)")
    tell("micro_batch_size    samples/s    memory (GiB)")
    found = Sizes({}, [])

    def fits(size: int) -> bool:
        result = try_size(config, size, ranks, limit)
        if result is None:
            found.too_large.append(size)
            tell(f"{size:16,d}    does not fit")
            return False
        found.fitting[size] = result
        tell(f"{size:16,d}{result.samples_per_second:13,.1f}{result.peak_bytes / GIB:16.2f}")
        return True

    if find_largest(possible_sizes(config, ranks), fits) is None:
        raise UserError(
            f"not even {min(found.too_large)} sample(s) a forward pass fit; set train.activation_checkpointing=full, "
            "or train.precision=bf16, or engine=fsdp on more ranks, or a smaller encoder"
        )
    return found


def check_place(ranks: int, memory_gib: float | None) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("batch-find starts its ranks itself: leave torchrun out, and say --ranks N")
    if memory_gib is not None and memory_gib <= 0:
        raise UserError(f"--memory-gib {memory_gib:g}: must be greater than 0")
    devices = torch.cuda.device_count()
    if ranks < 1 or (devices and ranks > devices):
        raise UserError(f"--ranks {ranks}: must be 1 or more{f', and at most {devices}' if devices else ''}")


def possible_sizes(config: Config, ranks: int) -> list[int]:
    """The micro-batch sizes that divide a rank's share of every global batch, rising."""
    shares = [batch // ranks for batch in config.train.batch_sizes.all]
    largest = config.train.global_batch_size // ranks
    return [n for n in range(1, largest + 1) if all(share % min(n, share) == 0 for share in shares)]


def find_largest(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of the rising `sizes` that fits, given that all smaller ones do; None where none does.

    Sizes are about doubled until one does not fit, and what lies between is bisected.
    """
    low, high = -1, len(sizes)  # what fits lies up to `low`, what does not from `high` on
    at = 0
    while at < high:
        if not fits(sizes[at]):
            high = at
            break
        low = at
        double = [i for i in range(at + 1, len(sizes)) if sizes[i] <= 2 * sizes[at]]
        at = double[-1] if double else at + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else None


def memory_limit(ranks: int, memory_gib: float | None) -> int | None:
    """Bytes that a rank may use; None for all of its GPU."""
    if memory_gib is not None:
        return int(memory_gib * GIB)
    return None if torch.cuda.is_available() else int(SHARE_OF_FREE * free_memory() / ranks)


def free_memory() -> int:
    """Bytes of the host's memory that processes could still get, within the limit of this container."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


def try_size(config: Config, size: int, ranks: int, limit: int | None) -> Try | None:
    """Take some steps with micro-batches of `size`; None where memory does not suffice.

    Raises:
        UserError: they cannot be taken for another reason.
    """
    passes = min(config.train.global_batch_size // ranks // size, PASSES)
    batch = ranks * size * passes
    train = replace(config.train, global_batch_size=batch, micro_batch_size=size, batch_size_warmup=())
    with tempfile.TemporaryDirectory(prefix="batch-find-") as folder:
        results, statuses = run_ranks(replace(config, train=train), ranks, limit, Path(folder))
    if any(is_lack(result, status, limit) for result, status in zip(results, statuses, strict=True)):
        return None
    for rank, (result, status) in enumerate(zip(results, statuses, strict=True)):
        if "seconds" not in result:
            reason = result.get("error", f"ended with exit status {status}")
            raise UserError(f"micro_batch_size={size}, rank {rank}: {reason}")
    fastest = max(min(result["seconds"][1:]) for result in results)
    return Try(size, batch / fastest, max(result["peak_bytes"] for result in results))


def is_lack(result: dict[str, Any], status: int, limit: int | None) -> bool:
    """Whether a rank ran out of memory: it said so, or the system ended it, or C++ code that met the limit did."""
    if result:
        return bool(result.get("out_of_memory"))
    return status == -signal.SIGKILL or (limit is not None and status == -signal.SIGABRT)


def run_ranks(
    config: Config, ranks: int, limit: int | None, folder: Path
) -> tuple[list[dict[str, Any]], list[int]]:
    """Run a try on every rank, and end the others when one has failed.

    Returns:
        By rank, what it has left in `folder` (nothing where it did not come to that), and its exit status.
    """
    context = multiprocessing.get_context("forkserver")  # which imports once, and forks each try
    context.set_forkserver_preload(["pretrain.run.batch_find"])
    port = free_port()
    processes = [
        context.Process(target=measure, args=(config, rank, ranks, port, limit, folder))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        wait_for(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()  # not SIGKILL, by which the system ends what takes too much memory
            process.join()
    files = [folder / f"rank_{rank}.json" for rank in range(ranks)]
    results = [json.loads(path.read_text()) if path.exists() else {} for path in files]
    return results, [process.exitcode or 0 for process in processes]


def wait_for(processes: list[ForkServerProcess]) -> None:
    """Until all have ended, or one has failed and the others had time to say what they met."""
    left, until = list(processes), None
    while left and (until is None or time.monotonic() < until):
        connection.wait([process.sentinel for process in left], timeout=1.0)
        left = [process for process in left if process.is_alive()]
        if until is None and any(process.exitcode for process in processes if process not in left):
            until = time.monotonic() + PATIENCE


def free_port() -> int:
    """A port of this machine for the ranks to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def measure(config: Config, rank: int, ranks: int, port: int, limit: int | None, folder: Path) -> None:
    """One rank of a try, as a process: leaves in `folder` what it came to, and ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if ranks > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {key: str(value) for key, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # as torchrun has it
    silence(folder / f"rank_{rank}.txt")
    status, result = 0, {}
    try:
        if limit:
            limit_memory(limit, rank)
        found = dry_run(config, steps=STEPS, beside=False)
        result = {"seconds": found.seconds, "peak_bytes": found.peak_bytes or own_peak()}
    except Exception as error:
        status, result = 1, {"error": f"{type(error).__name__}: {error}"}
        if comes_of_lack(error):
            result = {"out_of_memory": True}
    (folder / f"rank_{rank}.json").write_text(json.dumps(result))
    os._exit(status)  # the other ranks may be gone: no group is left, and no thread waited for


def comes_of_lack(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised for, is a lack of memory."""
    if error is None:
        return False
    own = isinstance(error, OutOfMemoryError) or lacks_memory(error)
    return own or comes_of_lack(error.__cause__ or error.__context__)


def silence(path: Path) -> None:
    """Let this process print into a file: what a try meets is told by the one line about it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())


def limit_memory(limit: int, rank: int) -> None:
    """Let this process use no more than so many bytes: of its GPU, or where there is none, of the host."""
    if torch.cuda.is_available():
        _, whole = torch.cuda.mem_get_info(rank)
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), rank)
        return
    # The system counts addresses, of which a process has many more than it uses: libraries, which lie there already.
    addresses, used = map(int, Path("/proc/self/statm").read_text().split()[:2])
    idle = (addresses - used) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (idle + limit,) * 2)


def own_peak() -> int:
    """Bytes that this process has used at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
