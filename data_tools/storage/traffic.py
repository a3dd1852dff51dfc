"""How much this process has asked of remote storage."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counts since the process began: ``requests`` answered and their ``bytes``, ``retries`` after a passing error,
    ``hedges`` (second requests for what took unusually long) and ``hedges_won`` (those that were the faster)."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Count; safe among threads."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


traffic = Traffic()
"""Of this process, workers that are processes not included."""
