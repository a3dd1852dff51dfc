"""Worker processes end with their parent and for their parent, and by nothing else."""

from __future__ import annotations

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from data_tools.stream.process_workers import SIGNALS, ProcessPool


def double(number):
    return os.getpid(), 2 * number


def test_workers_work_on_whatever_a_scheduler_sends_them():
    with ProcessPool(1, double) as pool:
        worker, answer = pool.do(1).result()
        assert answer == 2
        for number in SIGNALS:
            pool.submit(os.getpid)  # something to do meanwhile
            # From a process that is not its parent, as a scheduler's is not.
            assert os.spawnvp(os.P_WAIT, "kill", ["kill", f"-{int(number)}", str(worker)]) == 0
        assert pool.do(2).result() == (worker, 4)


def test_a_pool_that_has_lost_a_worker_ends_the_others():
    before = set(psutil.Process().children())
    with ProcessPool(2, double) as pool:
        workers = {pool.do(number).result()[0] for number in range(8)}
        started = {
            one
            for one in psutil.Process().children()
            if one not in before and "spawn_main" in str(one.cmdline())
        }
        assert len(started) >= len(workers)
        os.kill(min(workers), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            pool.do(9).result()
    _, alive = psutil.wait_procs(list(started), timeout=30)
    assert not alive
