"""Python's garbage is collected at the steps that `train.gc_every` names, the same on all ranks, and at no others."""

from __future__ import annotations

import gc

import pytest

from pretrain.guards.garbage import collect_garbage_every
from tests.distributed.curves import STEPS, build_trainer


class Cycle:
    def __init__(self):
        self.itself = self


def make_garbage():
    """More of it than Python leaves lying about by itself."""
    return [Cycle() for _ in range(3 * gc.get_threshold()[0])]


@pytest.fixture
def collections():
    """What is appended where Python collects; what `where` says then is."""
    found: list[int] = []
    where = [0]

    def note(phase, _information):
        if phase == "start":
            found.append(where[0])

    gc.callbacks.append(note)
    yield found, where
    gc.callbacks.remove(note)


def test_nothing_is_collected_but_where_it_is_due_and_all_is_as_before_afterwards(collections):
    found, where = collections
    frozen = gc.get_freeze_count()
    with collect_garbage_every(3) as collect:
        found.clear()
        for step in range(1, 8):
            where[0] = step
            make_garbage()
            assert not gc.isenabled()
            collect(step)
        assert found == [3, 6]
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen
    found.clear()
    make_garbage()
    assert found, "Python collects by itself again"


def test_it_is_as_before_after_an_error_too():
    with pytest.raises(ArithmeticError), collect_garbage_every(3):
        raise ArithmeticError
    assert gc.isenabled()


def test_with_0_python_collects_when_it_will(collections):
    found, _ = collections
    with collect_garbage_every(0) as collect:
        assert gc.isenabled()
        found.clear()
        make_garbage()
        collect(1)
    assert found


def test_a_run_collects_at_the_steps_that_it_is_told(collections):
    found, where = collections
    trainer = build_trainer("mae", ["train.gc_every=3"])

    def begin_step(step, _total):
        where[0] = step + 1
        make_garbage()

    trainer.objective.begin_step = begin_step
    found.clear()
    trainer.fit()
    assert [step for step in found if 1 < step < STEPS] == [3, 6]
