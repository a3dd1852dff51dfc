"""Optimizers, parameter groups and learning-rate schedules."""

from pretrain.optim.build import build_optimizer
from pretrain.optim.groups import check_rules
from pretrain.optim.schedules import learning_rate

__all__ = ["build_optimizer", "check_rules", "learning_rate"]
