"""Signals ask for a stop; what torchrun starts again afterwards ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from pretrain.guards.preemption import SAME_REQUEST, leave_stop_mark, read_stop_mark

LISTENER = """
import ctypes, time
from pretrain.guards.preemption import StopRequest
with StopRequest() as request:
    print("listening", flush=True)
    ctypes.CDLL(None).sleep(4)  # as in a collective: signals cut one sleep short, handlers of Python come after it
    ctypes.CDLL(None).sleep(4)
    ctypes.CDLL(None).sleep(4)
    print("asked", request.asked, request.status, flush=True)
"""


@pytest.mark.parametrize(
    ("signals", "pause", "status", "said"),
    [
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1], 1.5, 0, "asked True 75"),
        ([signal.SIGINT, signal.SIGINT], 0.1, 0, "asked True 130"),
        ([signal.SIGINT, signal.SIGINT], 1.5, 130, ""),
    ],
    ids=["a scheduler insists", "one Ctrl-C, passed on by a launcher", "two Ctrl-C"],
)
def test_the_step_in_hand_is_finished_unless_ctrl_c_is_pressed_twice(signals, pause, status, said):
    assert (pause < SAME_REQUEST) == (pause == 0.1)
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "listening\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        out, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert out.strip() == said
    assert len(error.splitlines()) == (1 if status else 0), error


def test_ranks_started_again_after_a_stop_end_with_its_status(tmp_path):
    def environment(restart):
        file = tmp_path / f"attempt_{restart}" / "0" / "error.json"
        return {"TORCHELASTIC_ERROR_FILE": str(file), "TORCHELASTIC_RESTART_COUNT": str(restart)}

    assert read_stop_mark({}) is None, "no torchrun"
    assert read_stop_mark(environment(0)) is None, "not asked to stop"
    leave_stop_mark(75, environment(1))
    assert read_stop_mark(environment(2)) == 75
    assert read_stop_mark(environment(3)) == 75, "and so on, until no restart is left"
    leave_stop_mark(75, environment(1))
    assert read_stop_mark(environment(1)) is None, "stopped for a change of nodes, which is no restart"
    assert read_stop_mark(environment(2)) is None, "a failure after that"
