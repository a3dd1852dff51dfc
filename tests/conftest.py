"""Shared by all tests: a cache of their own, no network, few threads; which file begins first, and what was dear."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# What is compiled once is kept, for all workers and the processes that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Or glibc gives memory back to the kernel and takes it again in every step of a tiny model, for a tenth of all time.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "1000000000")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "33554432")
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
# One ninja for all, the environment's, as in an activated one: another version would build DeepSpeed's extension anew.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

gc.disable()  # until all is imported, which is an eighth faster so

from tests.stranger import run_as_stranger  # noqa: E402, F401 - a fixture
from tests.warm_start import SHARED  # noqa: E402

SHOWN = 10
"""The dearest tests that are named at the end."""
BUILD = "from deepspeed.comm.torch import build_shm_op; build_shm_op()"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def shared_by_workers(shared: Path) -> None:
    """Embedded data are unpacked into a folder of this session, once for all workers, never the user's, and one server
    starts their processes."""
    os.environ["MASQUERADE_CACHE"] = str(shared / "cache")
    os.environ[SHARED] = str(shared / "warm_start")


@pytest.fixture(scope="session")
def deepspeed_extension(shared: Path) -> None:
    """DeepSpeed's extension is built: once an environment (a minute), by one worker; the others wait for it."""
    with (shared / "deepspeed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = {**os.environ, "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
        subprocess.run([sys.executable, "-c", BUILD], env=env, check=True, capture_output=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: a worker that took one of them last would leave the other idle."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector need not look at it again."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the dearest tests, set-up and tear-down included."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
    dearest = ", ".join(
        f"{name.removeprefix('tests/')} {spent:.0f} s" for name, spent in seconds.most_common(SHOWN)
    )
    terminalreporter.write_line(f"{len(seconds)} tests took {seconds.total():.0f} s; the dearest: {dearest}")
