"""What was damaged, where, and when that is too much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_tools.errors import UserError, printable
from data_tools.storage.urls import redact_urls, redacted


class DamagedSampleError(ValueError):
    """A sample that cannot be read: ``shard`` and ``name`` (its key, or its row where the key is gone), printable.

    ``known``: `verify` had marked it, so nothing was read.
    """

    def __init__(self, shard: str, name: str, reason: str, known: bool = False) -> None:
        # it stands in the ledger, in metrics and logs
        shard, name, reason = printable(redacted(shard)), printable(name), printable(redact_urls(reason))
        super().__init__(f"{shard}: sample {name}: {reason}")
        self.shard, self.name, self.reason, self.known = shard, name, reason, known

    def __reduce__(self) -> tuple[type, tuple[str, str, str, bool]]:  # else no process can hand it to another
        return type(self), (self.shard, self.name, self.reason, self.known)


class IncompleteSampleError(UserError):
    """A sample that lacks ``field``, which is needed: a loader puts another in its place and counts it as damaged."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.field)


@dataclass(frozen=True)
class Damage:
    """One sample that could not be read at ``position`` and was replaced; ``known``: `verify` had marked it before."""

    position: int
    shard: str
    name: str
    reason: str
    known: bool = False

    @classmethod
    def at(cls, position: int, error: DamagedSampleError) -> Damage:
        """What the error says, of the sample that belongs at ``position`` of the run."""
        return cls(position, error.shard, error.name, error.reason, error.known)


class Ledger:
    """Every substitution of a run, and the limit above which the run stops."""

    def __init__(self, max_rate: float = 0.01, grace: int = 1000) -> None:
        """``max_rate``: damaged / taken that is still accepted, once ``grace`` samples were taken.

        Samples that `verify` had marked are recorded, but do not count: nobody has to be warned of them again.
        """
        self.max_rate, self.grace = max_rate, grace
        self.entries: list[Damage] = []
        self.taken = self.unknown = 0

    def add(self, damages: list[Damage], taken: int) -> None:
        """Account for ``taken`` samples, ``damages`` of them replaced; raises UserError above the limit."""
        self.taken += taken
        self.entries += damages
        new = [damage for damage in damages if not damage.known]
        self.unknown += len(new)
        if new and self.unknown > self.max_rate * max(self.taken, self.grace):
            worst = ", ".join(f"{shard} ({n})" for shard, n in self.worst_shards())
            raise UserError(
                f"{self.unknown} of {self.taken} samples are damaged (limit {self.max_rate:.2%}); worst shards:"
                f" {worst}; last: {new[-1].name}: {new[-1].reason}; run `python -m data_tools verify`"
            )

    def worst_shards(self, count: int = 5) -> list[tuple[str, int]]:
        """(shard, samples) of those that hold most of the damage that no mark had told of."""
        return Counter(entry.shard for entry in self.entries if not entry.known).most_common(count)
