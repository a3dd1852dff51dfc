"""Remote shards through a bounded cache on this node's disk: whole segments, fetched ahead of their use.

A segment is a run of consecutive samples of a shard, the chunk of the order where there are chunks. All processes of
a node share the cache: files appear by atomic rename, a lock file lets one process fetch what others wait for, and
the modification time of a cached file is the position of its next known use, so that any process can evict what is
needed last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.storage import counters
from data_tools.storage.background import GLANCE, DaemonPool, StoppedError, pause
from data_tools.storage.cache_folder import cache_errors, cache_folder, make_shared_folder, share
from data_tools.storage.handles import OpenFile, Recent, allow_open_files, renew_when_forked
from data_tools.storage.locks import open_lock, try_lock
from data_tools.storage.objects import NoRangesError, Retry, read_range, read_whole, redacted
from data_tools.storage.retry import PATIENT

log = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

CACHE_BYTES = 16 << 30

PREFETCH_BYTES = 256 << 20

FETCH_THREADS = 8

LOCKS = 4096

LOCK_FOLDER = ".locks"  # apart from the segments, which are listed often

LEFTOVER = 86_400
"""Seconds after which a file that was not fetched to its end is taken for one that nobody is at."""

_NEVER = 1 << 33  # a time no position reaches; ext4 keeps 34 bits of seconds


@dataclass(frozen=True)
class FetchOptions:
    """How remote data are read.

    ``cache_bytes``: what this node keeps of a data set; ``prefetch_bytes``: what may be on its way to a process;
    ``cache_folder``: where caches lie, by default where `cache_folder` says. ``retry``: how long an outage is waited
    for, and with which options storage is opened. ``checksums``: compare each sample's CRC, where the sidecar has it,
    each time it is read; of local data too.
    """

    cache_bytes: int = CACHE_BYTES
    retry: Retry = PATIENT
    checksums: bool = True
    prefetch_bytes: int = PREFETCH_BYTES
    cache_folder: Path | None = None

    @property
    def cache(self) -> Path:
        """The folder of all caches."""
        return cache_folder(self.cache_folder)


@dataclass(frozen=True)
class Segment:
    """Samples [first, stop) of shard ``shard``, about ``bytes`` of them.

    Where they lie is asked of ``find`` when it is needed, for that takes the shard's sidecar. What is needed ``once``
    does not stay in the cache afterwards. A ``part`` ≥ 0 is one of a single large sample; ``tokens`` says what is left
    out of the first and the last sample.
    """

    shard: int
    first: int
    stop: int
    bytes: int
    find: Callable[[Segment], tuple[int, int]] = field(compare=False, repr=False)
    once: bool = False
    part: int = -1
    tokens: str = ""

    @property
    def name(self) -> str:
        """Of its file in the cache; another run of samples has another one."""
        part = "" if self.part < 0 else f".{self.part}"
        return f"{self.shard:08d}-{self.first:08d}-{self.stop - self.first}{part}{self.tokens}"

    @cached_property
    def range(self) -> tuple[int, int]:
        """(offset in the shard, bytes)."""
        return self.find(self)

    @property
    def start(self) -> int:
        """Offset in the shard, in bytes."""
        return self.range[0]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.range[1]


class SegmentCache:
    """Segments of one data set on local disk, at most ``capacity`` bytes unless one alone is larger."""

    def __init__(
        self, folder: Path, url_of: Callable[[int], str], options: FetchOptions, at_once: int = 256
    ) -> None:
        """``at_once``: segments that are read in turn, so many files are kept open."""
        self.folder, self.url_of, self.at_once = folder, url_of, at_once
        self.capacity, self.retry = options.cache_bytes, options.retry
        self.prefetch_bytes = options.prefetch_bytes
        self.fetched = self.hits = 0  # segments
        make_shared_folder(folder / LOCK_FOLDER)
        self._remove_leftovers()
        self._start()
        renew_when_forked(self)

    def begin_in_child(self) -> None:
        """Nothing is on its way here: the threads that fetch are the parent's."""
        self._start()

    def _start(self) -> None:
        self._files = Recent(OpenFile, allow_open_files(self.at_once))
        self._whole: set[int] = set()  # shards of servers that ignore ranges
        self._short: OrderedDict[str, bytes] = OrderedDict()  # segments whose server sent less than promised
        self._lock = threading.Lock()
        self._pool: DaemonPool | None = None
        self._coming: dict[str, tuple[int, int]] = {}  # on their way: name → (bytes, position of next use)
        self._next_use: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        kept = ("folder", "url_of", "at_once", "capacity", "retry", "prefetch_bytes", "fetched", "hits")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()
        renew_when_forked(self)

    def read(self, segment: Segment, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the shard, which lie in ``segment``; fewer where the data end."""
        short = self._short.get(segment.name)
        if short is not None:
            return short[offset - segment.start : offset - segment.start + size]
        for _ in range(3):  # evicted between fetching and opening: fetched again
            path, begin = self._ensure(segment)
            if path is None:
                return self.read(segment, offset, size)
            with suppress(FileNotFoundError), cache_errors(self.folder):
                data: bytes = self._files(str(path)).read(size, offset - begin)
                return data
        raise UserError(f"{self.folder}: the cache of {self.capacity} bytes is too small; give it more room")

    def _ensure(self, segment: Segment) -> tuple[Path | None, int]:
        """(file that holds the segment, offset in the shard where it begins); None where it is kept in memory."""
        if segment.shard in self._whole:
            return self._ensure_whole(segment.shard), 0
        path = self.folder / segment.name
        if path.exists():
            self.hits += 1
            counters.counts.cache_hits += 1
            return path, segment.start
        counters.counts.cache_misses += 1
        try:
            return (path if self._fetch(segment, path) else None), segment.start
        except NoRangesError:
            log.warning("%s ignores ranges: whole shards are fetched", redacted(self.url_of(segment.shard)))
            self._whole.add(segment.shard)
            return self._ensure_whole(segment.shard), 0

    def _fetch(self, segment: Segment, path: Path, wait: bool = True) -> bool:
        """Fetch a segment unless another process just did; False when it is short and therefore not kept.

        Raises BlockingIOError where another process is at it and must not be waited for.
        """
        with self._locked(segment.name, wait):
            if path.exists():
                return True
            data = read_range(self.url_of(segment.shard), segment.start, segment.size, self.retry)
            self.fetched += 1
            counters.counts.fetched_bytes += len(data)
            if len(data) < segment.size:
                self._short[segment.name] = data
                if len(self._short) > 64:
                    self._short.popitem(last=False)
                return False
            partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
            with cache_errors(self.folder):
                try:
                    partial.write_bytes(data)
                    os.utime(partial, (0, self._next_use.get(segment.name, _NEVER)))
                    self._admit(partial, path, needed_now=wait)
                finally:
                    partial.unlink(missing_ok=True)
        return True

    def _ensure_whole(self, shard: int) -> Path:
        path = self.folder / f"{shard:08d}-whole"
        if not path.exists():
            with self._locked(path.name):
                if not path.exists():
                    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
                    try:
                        read_whole(self.url_of(shard), partial, self.retry)
                        counters.counts.fetched_bytes += partial.stat().st_size
                        with cache_errors(self.folder):
                            self._admit(partial, path, needed_now=True)
                        self.fetched += 1
                    finally:
                        partial.unlink(missing_ok=True)
        return path

    def drop(self, segment: Segment) -> None:
        """Forget a segment whose bytes turned out to be damaged, so that it is fetched once more."""
        self._short.pop(segment.name, None)
        for path in (self.folder / segment.name, self.folder / f"{segment.shard:08d}-whole"):
            with cache_errors(self.folder):
                path.unlink(missing_ok=True)
            self._files.forget(str(path))

    def expect(self, segment: Segment, position: int) -> bool:
        """Say that a segment will be used at a position, and fetch it in the background if it is not there.

        False when too much is on its way, or what is needed sooner leaves no room: say it again later.
        """
        self._next_use[segment.name] = position = min(position, _NEVER)
        if self._set_next_use(segment, position):
            return True
        if segment.shard in self._whole:
            return True
        with self._lock:
            if self._pool is None:
                self._pool = DaemonPool(FETCH_THREADS, "fetch")
            if segment.name in self._coming:
                return True
            coming = sum(size for size, _ in self._coming.values())
            full = self._coming and coming + segment.bytes > self.prefetch_bytes
            if full or not self._room(segment.bytes, position):
                return False
            self._coming[segment.name] = segment.bytes, position
            self._pool.submit(self._fetch_ahead, segment)
        return True

    def _set_next_use(self, segment: Segment, position: int) -> bool:
        """Note at a cached segment when it is needed next; False where it is not cached."""
        try:
            os.utime(self.folder / segment.name, (0, position))
        except FileNotFoundError:
            return False
        except PermissionError:  # another user fetched it, who alone may set that
            pass
        return True

    def _fetch_ahead(self, segment: Segment) -> None:
        # Whoever needs the segment will try again, and tell. Where another rank of this node is at it, that is waited
        # for by nobody but the reader: meanwhile this one fetches what comes next.
        with suppress(UserError, OSError, StoppedError):
            self._fetch(segment, self.folder / segment.name, wait=False)
        with self._lock:
            self._coming.pop(segment.name, None)

    def finished(self, segment: Segment) -> None:
        """Say that a segment has no known use left."""
        self._next_use.pop(segment.name, None)
        if not segment.once:
            self._set_next_use(segment, _NEVER)
            return
        self._files.forget(str(self.folder / segment.name))
        with suppress(FileNotFoundError, PermissionError):
            (self.folder / segment.name).unlink()

    def _remove_leftovers(self) -> None:
        """Remove what processes that were killed had fetched by half: nothing else would, and it counts as no segment.

        By the time of its last change, for its own time says when a segment is needed.
        """
        old = time.time() - LEFTOVER
        with os.scandir(self.folder) as files:
            for file in files:
                if file.name.startswith(".") and file.name != LOCK_FOLDER:
                    with suppress(FileNotFoundError, PermissionError):
                        if file.is_file() and file.stat().st_ctime < old:
                            Path(file.path).unlink()

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(next use, bytes, path) of what is cached."""
        entries = []
        with cache_errors(self.folder), os.scandir(self.folder) as files:
            for file in files:
                if not file.name.startswith("."):
                    try:
                        status = file.stat()
                    except FileNotFoundError:
                        continue
                    entries.append((status.st_mtime, status.st_size, Path(file.path)))
        return entries

    def _room(self, size: int, position: int) -> bool:
        """Whether ``size`` more bytes fit if only what is needed after ``position`` is evicted."""
        sooner = sum(bytes_ for next_use, bytes_, _ in self._entries() if next_use <= position)
        sooner += sum(bytes_ for bytes_, next_use in self._coming.values() if next_use <= position)
        return sooner + size <= self.capacity

    def _admit(self, partial: Path, path: Path, needed_now: bool) -> None:
        """Give a fetched file its name, after evicting what is needed last until it fits.

        One that was fetched ahead is dropped where that would be itself: what came meanwhile is needed sooner.
        """
        status = partial.stat()
        size, next_use = status.st_size, status.st_mtime
        with self._locked("room"):
            entries = sorted(self._entries(), reverse=True)
            total = sum(bytes_ for _, bytes_, _ in entries)
            later = sum(bytes_ for use, bytes_, _ in entries if use > next_use)
            if not needed_now and total - later + size > self.capacity:
                return
            for _, bytes_, old in entries:
                if total + size <= self.capacity:
                    break
                with suppress(
                    PermissionError
                ):  # another user's, in a folder where everybody removes their own only
                    old.unlink(missing_ok=True)
                    self._files.forget(str(old))
                    counters.counts.cache_evictions += 1
                    total -= bytes_
            share(partial)
            partial.replace(path)

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[None]:
        """Exclusive among the threads and processes of the node; a killed process lets go by dying.

        Raises BlockingIOError where it is held and not to be waited for.
        """
        # a few lock files for all names; "room" has one to itself, as it is taken while another is held
        slot = name if name == "room" else zlib.crc32(name.encode()) % LOCKS
        with cache_errors(self.folder):
            lock = self.folder / LOCK_FOLDER / str(slot)
            handle = open_lock(lock)
            share(lock)
        try:
            seconds = 0.001
            while not try_lock(handle):
                if not wait:
                    raise BlockingIOError(f"{name} is being fetched")
                pause(seconds)
                seconds = min(2 * seconds, GLANCE / 4)
            yield
        finally:
            os.close(handle)

    def close(self) -> None:
        """Stop fetching ahead; what is on its way is dropped. Reading goes on, and `expect` starts it again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
            with self._lock:
                self._coming.clear()
