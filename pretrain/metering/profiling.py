"""The profiler and the device's memory history, over a few steps and by a setting, for people to open."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from pretrain.tracking.config import TrackingConfig

ROWS = 40


def check_profiling(config: TrackingConfig) -> None:
    """Raise a `UserError` for a memory history on a machine that has none."""
    if config.memory_snapshot and not torch.cuda.is_available():
        raise UserError(
            "tracking.memory_snapshot: records a GPU's memory, and this machine shows no GPU; leave it out, "
            "or look at peak_memory_gib on the logged lines"
        )


class Profiling:
    """Records steps `profile_at` … `profile_at` + `profile_steps` - 1 of one rank into `folder`."""

    def __init__(self, config: TrackingConfig, folder: Path, rank: int) -> None:
        self.config = config
        self.folder = folder
        self.rank = rank
        self.profiler: profile | None = None

    @property
    def last(self) -> int:
        return self.config.profile_at + self.config.profile_steps - 1

    def covers(self, step: int) -> bool:
        """Whether `step` (1 is the first) is recorded; a run resumed within the steps records those that are left."""
        return 0 < self.config.profile_at <= step <= self.last

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self.profiler:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        cuda = torch.cuda.is_available()
        if self.config.memory_snapshot:
            torch.cuda.memory._record_memory_history()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self.profiler = profile(activities=activities, record_shapes=True)
        self.profiler.start()

    def stop(self) -> None:
        """Write `rank_R.json` (for chrome://tracing or Perfetto), `rank_R.txt` (the dearest operators first) and, where
        set, `memory_rank_R.pickle` (for pytorch.org/memory_viz; nothing here ever loads it)."""
        if not self.profiler:
            return
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.folder / f"rank_{self.rank}.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = self.profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
        write_atomically(self.folder / f"rank_{self.rank}.txt", table)
        if self.config.memory_snapshot:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_rank_{self.rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self.profiler = None
