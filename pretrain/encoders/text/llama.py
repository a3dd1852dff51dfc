"""Llama (Touvron et al. 2023, arXiv:2302.13971) on `transformers.LlamaModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaModel

from pretrain.encoders.text.base import CausalTextEncoder, Pooling


@dataclass(frozen=True)
class LlamaEncoderConfig:
    """Names as in `transformers.LlamaConfig`; the default size is GPT-2's, not 7B."""

    name: str = "llama"
    from_pretrained: str | None = None
    """A `transformers` folder or a release to start from; sizes are the folder's unless set here."""
    vocab_size: int | None = None
    """Default: the tokenizer's."""
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    """Default: num_attention_heads; fewer share keys and values (grouped-query attention)."""
    intermediate_size: int | None = None
    """Default 8/3 × hidden_size, rounded up to a multiple of 64 (the MLP is gated)."""
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    max_length: int = 512
    """Tokens of a sample that is not packed: longer ones are cut, shorter ones padded."""
    pooling: Pooling = "mean"


class LlamaEncoder(CausalTextEncoder):
    """Pre-norm blocks with RMSNorm, rotary positions, gated MLPs, no biases."""

    Config = LlamaEncoderConfig
    HFConfig = LlamaConfig
    model_types = ("llama",)
    model: LlamaModel

    def build(self) -> LlamaModel:
        size = self.config.intermediate_size or -(-8 * self.config.hidden_size // (3 * 64)) * 64
        rope = {"rope_type": "default", "rope_theta": self.config.rope_theta}
        return LlamaModel(
            self.hf_config(intermediate_size=size, rope_parameters=rope, tie_word_embeddings=True)
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.norm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        rope: Any = LlamaConfig.from_dict(values).rope_parameters
        return {**super().settings_from(folder, values), "rope_theta": float(rope["rope_theta"])}
