"""The objectives by name. A user's own is found as `module:Class`, without touching this file."""

from __future__ import annotations

from pretrain.config.registry import find_class
from pretrain.objectives.attribute import Attribute
from pretrain.objectives.autoencoder import Autoencoder
from pretrain.objectives.base import Objective
from pretrain.objectives.clm import CLM
from pretrain.objectives.dino import DINO
from pretrain.objectives.gan import GAN
from pretrain.objectives.ijepa import IJEPA
from pretrain.objectives.mae import MAE
from pretrain.objectives.mlm import MLM
from pretrain.objectives.simclr import SimCLR
from pretrain.objectives.vicreg import VICReg

OBJECTIVES: dict[str, type[Objective]] = {
    "mae": MAE,
    "mlm": MLM,
    "clm": CLM,
    "autoencoder": Autoencoder,
    "gan": GAN,
    "attribute": Attribute,
    "simclr": SimCLR,
    "vicreg": VICReg,
    "dino": DINO,
    "ijepa": IJEPA,
}


def objective_class(name: str) -> type[Objective]:
    """The objective called `name`, or the class that `module:Class` names."""
    return find_class(name, OBJECTIVES, "objective.name")
