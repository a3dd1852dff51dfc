"""The encoder families by name. A user's own is found as `module:Class`."""

from __future__ import annotations

from pretrain.encoders.base import Encoder
from pretrain.encoders.bert import BertEncoder
from pretrain.encoders.convnextv2 import ConvNextV2Encoder
from pretrain.encoders.gpt2 import GPT2Encoder
from pretrain.encoders.llama import LlamaEncoder
from pretrain.encoders.mlp import MLPEncoder
from pretrain.encoders.modernbert import ModernBertEncoder
from pretrain.encoders.vit import ViTEncoder
from pretrain.registry import find_class

ENCODERS: dict[str, type[Encoder]] = {
    "vit": ViTEncoder,
    "convnextv2": ConvNextV2Encoder,
    "mlp": MLPEncoder,
    "bert": BertEncoder,
    "modernbert": ModernBertEncoder,
    "gpt2": GPT2Encoder,
    "llama": LlamaEncoder,
}


def encoder_class(name: str) -> type[Encoder]:
    """The encoder family called `name`, or the class that `module:Class` names."""
    return find_class(name, ENCODERS, "encoder.name")
