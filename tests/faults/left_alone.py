"""A masked autoencoder whose rank 1 begins late and later leaves rank 0 alone, where closing the group never ends."""

from __future__ import annotations

import os
import time

import torch.distributed as dist

from data_tools.errors import UserError
from pretrain.objectives.mae import MAE


class LeftAlone(MAE):
    def after_step(self, phase, step, skipped):
        dist.destroy_process_group = lambda: time.sleep(600)
        if os.environ["RANK"] == "1" and step == 0:
            time.sleep(12)
        if os.environ["RANK"] == "1" and step == 3:
            if os.environ["LEAVES_BY"] == "an error":
                raise ArithmeticError("planted")
            if os.environ["LEAVES_BY"] == "a mistake":
                raise UserError("planted")
            time.sleep(20)
            os._exit(1)
