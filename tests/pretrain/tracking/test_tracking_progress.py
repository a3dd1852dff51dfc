"""What a person sees at the terminal."""

from __future__ import annotations

import io
import re

import pytest

from pretrain.tracking.progress import ProgressDisplay, clock, number


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_aligned_and_have_units():
    stream = io.StringIO()
    display = ProgressDisplay(1000, stream=stream)
    for step, loss in ((10, 1.23456), (500, 0.4), (1000, 0.3)):
        display.train(step, {"loss": loss, "grad_norm": 3.0, "lr": 1.5e-3, "samples_per_second": 5123.4})
    display.probe(1000, {"knn": 0.93})
    display.close()
    first, second, third, probe = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"step   10/1000  loss  1\.2346  lr 1\.50e-03   5,123 samples/s  ETA \d+:\d\d:\d\d", first
    )
    assert first.index("samples/s") == second.index("samples/s") == third.index("samples/s")
    assert third.endswith("ETA 0:00:00")
    assert probe == "step 1000/1000  probe: knn 93.0 %"


def test_every_phase_has_its_loss_in_the_line():
    stream = io.StringIO()
    ProgressDisplay(10, stream=stream).train(1, {"generator/loss": 0.5, "discriminator/loss": 1.5})
    assert "generator/loss  0.5000  discriminator/loss  1.5000" in stream.getvalue()


def test_a_terminal_gets_a_bar_with_loss_and_time_left():
    stream = Terminal()
    display = ProgressDisplay(100, start=40, stream=stream)
    display.train(50, {"loss": 0.25, "samples_per_second": 100.0})
    display.close()
    assert "50/100" in stream.getvalue()
    assert "0.2500" in stream.getvalue()
    assert "ETA" in stream.getvalue()


def test_time_left_counts_only_steps_of_this_start(monkeypatch):
    display = ProgressDisplay(100, start=90, stream=io.StringIO())
    now = display.started + 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert display.remaining(90) == "-"
    assert display.remaining(95) == "0:00:10"  # 5 steps in 10 s, 5 to go


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (83, "0:01:23"), (90061, "25:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_numbers_of_any_size_are_readable():
    assert number(0.00001234) == "1.234e-05"
    assert number(float("nan")).strip() == "nan"
