"""Every optimizer learns on every torch engine what it learns in one process, and goes on elsewhere as if nothing was.

Muon and the trust ratios look at whole matrices and layers, which FSDP cuts up. Losses and gradient norms agree within
1e-5 relative at each of 8 steps.
"""

from __future__ import annotations

import json

import pytest

from tests.distributed.curves import STEPS, build_trainer, sum_buffers
from tests.distributed.optimizer_curves import ENGINES, OPTIMIZERS, SAVED_AT, SAVING, train
from tests.processes import run

TOLERANCE = 1e-5
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone():
    """The control: one process."""
    return {optimizer: train(optimizer, []) for optimizer in OPTIMIZERS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By number of processes, where they wrote their curves and checkpoints."""
    return {processes: run_all(tmp_path_factory.mktemp("curves"), processes) for processes in (2, 4)}


def run_all(folder, processes):
    run("tests.distributed.optimizer_curves", [str(folder)], processes)
    return folder


def assert_same(found, expected):
    assert len(found) == len(expected)
    for step, (row, other) in enumerate(zip(found, expected, strict=True), 1):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=1e-7), step


@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimizer_learns_what_it_learns_in_one_process(engine, alone, folders):
    processes, optimizers, _ = ENGINES[engine]
    curves = json.loads((folders[processes] / "curves.json").read_text())[engine]
    assert tuple(curves) == optimizers
    for optimizer, rows in curves.items():
        assert_same(rows, alone[optimizer])


@pytest.mark.parametrize("optimizer", ENGINES[SAVING][1])
def test_what_two_sharded_ranks_saved_goes_on_in_one_process(optimizer, alone, folders):
    case, *own = OPTIMIZERS[optimizer]
    trainer = build_trainer(case, own, folders[2] / optimizer)
    assert trainer.resume(at_most=SAVED_AT) == []
    assert trainer.step == SAVED_AT
    trainer.fit()
    trainer.tracker.rows[-1]["buffers"] = sum_buffers(trainer)
    assert_same(trainer.tracker.rows, alone[optimizer][SAVED_AT:])


def test_the_curves_tell_the_optimizers_apart(alone):
    """Each learns, and another way than AdamW: by a hundred times more than the tolerance."""
    for optimizer, rows in alone.items():
        assert len(rows) == STEPS
        if optimizer not in ("adamw", "muon_twice"):
            assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
            assert rows[-1]["loss"] != pytest.approx(alone["adamw"][-1]["loss"], rel=100 * TOLERANCE)
