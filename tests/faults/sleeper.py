"""A masked autoencoder that falls asleep on rank 1 after a few steps, where the environment says how."""

from __future__ import annotations

import ctypes
import os
import time

from pretrain.objectives.mae import MAE


class Sleeper(MAE):
    def after_step(self, phase, step, skipped):
        if step == 4 and os.environ["RANK"] == "1":
            oversleep(os.environ.get("OVERSLEEP"))


def oversleep(how):
    if how == "politely":
        time.sleep(600)
    elif how == "with the interpreter's lock":
        ctypes.PyDLL(None).sleep(600)
