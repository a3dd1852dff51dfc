"""Starting the product's commands as a user would: real processes, one or several."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.warm_start import Process

QUIET = ("tracking.wandb.mode=disabled", "tracking.picture_every=0", "tracking.report=false",
         "tracking.count_flops=false", "probe.every=0", "representation.every=0",
         "representation.pictures=false")  # fmt: skip
"""Settings of a run without what costs more than its steps, for tests that are not about that."""
CLOCKED = (
    "time", "samples_per_second", "tokens_per_second", "tflops_per_second", "mfu", "peak_memory_gib", "data_wait",
    "straggler_wait", "slowest_rank", "communication", "communication_exposed", "data_reading", "data_decoding",
    "data_transforming", "read_mib_per_second",
)  # fmt: skip
"""Values of a logged line that depend on the machine and the moment."""


def command(package: str, arguments: list[str], processes: int = 1) -> list[str]:
    """`python -m package …`, under torchrun where there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", package, *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, *torchrun, package, *arguments]


def run(
    package: str, arguments: list[str], processes: int = 1, expect: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run to the end; fail with what it printed when the exit status is not the expected one (None: any but 0)."""
    process = start(package, arguments, processes, together=False)
    try:
        out, error = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    status = process.returncode
    as_expected = status != 0 if expect is None else status == expect
    assert as_expected, f"exit status {status}\n{out[-3000:]}\n{error[-5000:]}"
    return subprocess.CompletedProcess([package, *arguments], status or 0, out, error)


def start(
    package: str, arguments: list[str], processes: int = 1, together: bool = True, warm: bool = True
) -> Process | subprocess.Popen[str]:
    """Start it in the background; `kill` ends it.

    Args:
        together: both outputs in `stdout`.
        warm: from a process that has imported everything, see `warm_start`; else by Python and torchrun.
    """
    if warm and not os.environ.get("MASQUERADE_COLD_TESTS"):
        return Process(package, arguments, processes, environment(), together)
    return subprocess.Popen(
        command(package, arguments, processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )


def kill(process: Process | subprocess.Popen[str]) -> None:
    """SIGKILL to it and to all that it started: torchrun gives each of its ranks a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:])
    process.wait()
    if process.stdout:
        process.stdout.close()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(run_dir: Path) -> dict[int, dict[str, Any]]:
    """By step, the last `train` line of the run's metrics, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {k: v for k, v in line.items() if k not in CLOCKED}
        for line in lines
        if line["kind"] == "train"
    }
