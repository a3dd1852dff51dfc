"""What a logged line says of speed adds up."""

from __future__ import annotations

import time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.metering.communication import CommunicationSampler, covered
from pretrain.metering.meter import Meter
from pretrain.metering.profiling import check_profiling
from pretrain.tracking.config import TrackingConfig


def test_overlapping_intervals_count_once():
    assert covered([], (0, 9)) == 0
    assert covered([(5, 9), (0, 3), (2, 4), (6, 7)], (0, 9)) == 8
    assert covered([(5, 9), (0, 3), (2, 4), (6, 7)], (1, 6)) == 4
    assert covered([(0, 99)], (1, 6)) == 5
    assert covered([(7, 9), (0, 1)], (1, 6)) == 0


def test_the_profiler_counts_the_nanoseconds_of_the_clock():
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        before = time.time_ns()
        torch.ones(4).sum()
        after = time.time_ns()
    starts = [
        event.start_ns() for event in profiler.profiler.kineto_results.events() if "sum" in event.name()
    ]
    assert starts
    assert all(before - 1e6 < start < after + 1e6 for start in starts)


def meter(**settings):
    return Meter(DDPEngine(TrainConfig(), World()), **settings)


def test_rates_follow_from_samples_and_seconds():
    found = meter(tokens_per_sample=100, flops_per_sample=2e12, peak_flops=8e12)
    with found.step(1, samples=6):
        time.sleep(0.05)
    with found.step(2, samples=6), found.wait_for("data"):
        time.sleep(0.05)
    line = found.line()
    rate = line["samples_per_second"]
    assert 0 < rate <= 12 / 0.1
    assert line["tokens_per_second"] == pytest.approx(100 * rate)
    assert line["tflops_per_second"] == pytest.approx(2 * rate)
    assert line["mfu"] == pytest.approx(rate / 4)
    assert 0.05 * rate / 12 <= line["data_wait"] < 1
    assert line["communication"] == 0.0
    assert line["peak_memory_gib"] > 0.01


def test_a_line_begins_anew_and_what_is_no_training_is_left_out():
    found = meter()
    with found.step(1, samples=1000):
        pass
    found.line()
    with found.leave_out():
        time.sleep(0.3)
    with found.step(2, samples=3):
        time.sleep(0.01)
    assert 3 / 0.3 < found.line()["samples_per_second"] <= 3 / 0.01


def test_what_is_not_known_is_not_told():
    line = meter().line()
    assert (
        not {"tokens_per_second", "tflops_per_second", "mfu", "slowest_rank", "communication_exposed"}
        & line.keys()
    )


def test_the_sampler_measures_early_and_then_now_and_then():
    sampler = CommunicationSampler(every=100, ranks=2)
    assert [step for step in range(1, 301) if sampler.due(step)] == [1, 2, 100, 200, 300]
    assert sampler.share is None
    assert not any(CommunicationSampler(every=0, ranks=2).due(step) for step in range(1, 301))
    assert not any(CommunicationSampler(every=100, ranks=1).due(step) for step in range(1, 301))


def test_a_memory_history_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"tracking.memory_snapshot: .* no GPU"):
        check_profiling(TrackingConfig(memory_snapshot=True))
    check_profiling(TrackingConfig())
    with pytest.raises(UserError, match="peak_tflops"):
        load_config("mae_digits", ["tracking.peak_tflops=0"])
