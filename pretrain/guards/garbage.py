"""Python's garbage collection, on all ranks at the same step: a rank that collects alone lets all the others wait."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collect_garbage_every(steps: int) -> Iterator[Callable[[int], None]]:
    """Within it, Python collects only where it is told that step `step` is done, every so many steps.

    What is alive at the start is left alone, so that a collection looks at little. Afterwards Python collects by itself
    again, as before. With `steps=0` it does so all the time.
    """
    if not steps or not gc.isenabled():
        yield lambda _: None
        return
    gc.freeze()
    gc.disable()
    try:
        yield lambda step: collect_when_due(step, steps)
    finally:
        gc.enable()
        gc.unfreeze()


def collect_when_due(step: int, every: int) -> None:
    if step % every == 0:
        gc.collect()
