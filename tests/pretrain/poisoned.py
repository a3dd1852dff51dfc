"""A masked autoencoder whose loss is not a number wherever one certain sample is in the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pretrain.objectives.base import Loss
from pretrain.objectives.mae import MAE, MAEConfig


@dataclass(frozen=True)
class PoisonedConfig(MAEConfig):
    key: str = ""


class Poisoned(MAE):
    Config = PoisonedConfig

    def example(self, sample, rng):
        poison = math.nan if sample["__key__"] == self.config.key else 0.0
        return {**super().example(sample, rng), "poison": np.float32(poison)}

    def loss(self, phase, batch):
        loss = super().loss(phase, batch)
        return Loss(loss.sum * (1 + batch["poison"].sum()), loss.metrics)
