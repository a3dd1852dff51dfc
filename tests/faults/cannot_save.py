"""A masked autoencoder whose rank 1 finds no room for what DeepSpeed writes of the fourth step."""

from __future__ import annotations

import errno

import torch

from pretrain.objectives.mae import MAE


def refuse(_state, path, **_settings):
    raise OSError(errno.EDQUOT, "planted", str(path))


class CannotSave(MAE):
    def after_step(self, phase, step, skipped):
        if self.world.rank == 1 and step == 3:
            torch.save = refuse
