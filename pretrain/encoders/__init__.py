"""The encoder families by name. A user's own is found as `module:Class`."""

from __future__ import annotations

from pretrain.config.registry import find_class
from pretrain.encoders.base import Encoder
from pretrain.encoders.image.cnn import CNNEncoder
from pretrain.encoders.image.convnextv2 import ConvNextV2Encoder
from pretrain.encoders.image.dinov2 import DINOv2Encoder, DINOv2WithRegistersEncoder
from pretrain.encoders.image.dinov3_vit import DINOv3ViTEncoder
from pretrain.encoders.image.mlp import MLPEncoder
from pretrain.encoders.image.resnet import ResNetEncoder
from pretrain.encoders.image.swin import SwinEncoder, SwinV2Encoder
from pretrain.encoders.image.vit import ViTEncoder
from pretrain.encoders.text.bert import BertEncoder
from pretrain.encoders.text.electra import ElectraEncoder
from pretrain.encoders.text.gpt2 import GPT2Encoder
from pretrain.encoders.text.llama import LlamaEncoder
from pretrain.encoders.text.modernbert import ModernBertEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "vit": ViTEncoder,
    "dinov2": DINOv2Encoder,
    "dinov2_with_registers": DINOv2WithRegistersEncoder,
    "dinov3_vit": DINOv3ViTEncoder,
    "swin": SwinEncoder,
    "swinv2": SwinV2Encoder,
    "resnet": ResNetEncoder,
    "convnextv2": ConvNextV2Encoder,
    "mlp": MLPEncoder,
    "cnn": CNNEncoder,
    "bert": BertEncoder,
    "electra": ElectraEncoder,
    "modernbert": ModernBertEncoder,
    "gpt2": GPT2Encoder,
    "llama": LlamaEncoder,
}


def encoder_class(name: str) -> type[Encoder]:
    """The encoder family called `name`, or the class that `module:Class` names."""
    return find_class(name, ENCODERS, "encoder.name")
