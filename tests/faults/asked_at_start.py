"""A hook whose last rank is asked to stop while the run still starts."""

from __future__ import annotations

import signal
import time


class AskedAtStart:
    every = 1_000

    def __init__(self, context):
        if context.engine.world.rank == context.engine.world.size - 1:
            signal.raise_signal(
                signal.SIGTERM
            )  # to this very thread: another one might take it a moment later
            time.sleep(1)  # the thread that listens has its turn

    def run(self, step):
        raise AssertionError("there is nothing to look at before a run that is to stop")
