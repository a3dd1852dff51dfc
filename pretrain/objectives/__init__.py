"""The objectives by name. A user's own is found as `module:Class`, without touching this file."""

from __future__ import annotations

from pretrain.config.registry import find_class
from pretrain.objectives.attribute import Attribute
from pretrain.objectives.autoencoder import Autoencoder
from pretrain.objectives.base import Objective
from pretrain.objectives.bigan import BiGAN
from pretrain.objectives.clm import CLM
from pretrain.objectives.context_encoder import ContextEncoder
from pretrain.objectives.dino import DINO
from pretrain.objectives.electra import ELECTRA
from pretrain.objectives.gan import GAN
from pretrain.objectives.ijepa import IJEPA
from pretrain.objectives.mae import MAE
from pretrain.objectives.mlm import MLM
from pretrain.objectives.simclr import SimCLR
from pretrain.objectives.simmim import SimMIM
from pretrain.objectives.vae import VAE
from pretrain.objectives.vicreg import VICReg
from pretrain.objectives.vqvae import VQVAE

OBJECTIVES: dict[str, type[Objective]] = {
    "mae": MAE,
    "simmim": SimMIM,
    "mlm": MLM,
    "electra": ELECTRA,
    "clm": CLM,
    "autoencoder": Autoencoder,
    "vae": VAE,
    "vqvae": VQVAE,
    "gan": GAN,
    "bigan": BiGAN,
    "context_encoder": ContextEncoder,
    "attribute": Attribute,
    "simclr": SimCLR,
    "vicreg": VICReg,
    "dino": DINO,
    "ijepa": IJEPA,
}


def objective_class(name: str) -> type[Objective]:
    """The objective called `name`, or the class that `module:Class` names."""
    return find_class(name, OBJECTIVES, "objective.name")
