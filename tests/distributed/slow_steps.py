"""A hook that slows a run down where its environment says so, for tests that end it in the middle.

Training a tiny model takes milliseconds a step; without this a run would have to be long, for all who repeat it too.
"""

from __future__ import annotations

import os
import time

from pretrain.run.own_hooks import HookContext

SECONDS = "SECONDS_A_STEP"
"""The environment variable; where it is not set, nothing is slow."""
SLOW_STEPS = "hooks=['tests.distributed.slow_steps:SlowSteps']"


class SlowSteps:
    every = 1

    def __init__(self, _context: HookContext) -> None:
        self.seconds = float(os.environ.get(SECONDS, "0"))

    def run(self, _step: int) -> None:
        time.sleep(self.seconds)
