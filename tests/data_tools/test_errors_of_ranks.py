"""A mistake that all ranks meet is told once, by rank 0; one that another rank meets alone is told by that rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from data_tools import errors
from data_tools.errors import UserError, as_told, run_cli
from tests.processes import run

FAILS = """
import sys
from data_tools.errors import UserError, run_cli

def fail():
    print("failing", flush=True)
    raise UserError("a.tar: is not there; copy it")

sys.exit(run_cli(fail))
"""


def start(rank: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FAILS], env={**os.environ, "RANK": str(rank)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_rank_that_nobody_ends_tells_what_it_has_met():
    with start(3) as process:
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "failing\n")
    assert error == "error (rank 3): a.tar: is not there; copy it\n"


def test_a_rank_that_is_ended_after_rank_0_has_told_is_silent():
    with start(3) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "failing\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")


@pytest.mark.parametrize(("rank", "line"), [(None, "error: wrong\n"), ("0", "error: wrong\n")])
def test_rank_0_waits_for_nobody(monkeypatch, capsys, rank, line):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(errors, "PATIENCE", 1e9)
    assert run_cli(raiser(UserError("wrong"))) == 2
    assert capsys.readouterr().err == line


def test_what_rank_0_has_met_for_all_is_told_there_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors, "PATIENCE", 1e9)
    assert run_cli(raiser(as_told(UserError("wrong")))) == 2
    assert capsys.readouterr().err == ""


def raiser(error):
    def fail():
        raise error

    return fail


def test_two_ranks_with_one_mistake_tell_it_once(tmp_path):
    ended = run("pretrain", ["mae_digits", "data.path=gone", f"run_dir={tmp_path}"], 2, expect=1)
    assert ended.stderr.count("error") == 1, ended.stderr
    assert "gone" in ended.stderr
