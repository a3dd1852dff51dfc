"""Optimizers, parameter groups and learning-rate schedules."""

from pretrain.optim.build import build_optimizer
from pretrain.optim.schedules import learning_rate

__all__ = ["build_optimizer", "learning_rate"]
