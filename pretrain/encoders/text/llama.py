"""Llama (Touvron et al. 2023, arXiv:2302.13971) on `transformers.LlamaModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import nn
from transformers import LlamaConfig, LlamaModel

from data_tools.errors import UserError
from pretrain.config.schema import Share
from pretrain.encoders.text.base import CausalTextEncoder, TextEncoderConfig


@dataclass(frozen=True)
class LlamaEncoderConfig(TextEncoderConfig):
    """Names as in `transformers.LlamaConfig`; the default size is GPT-2's, not 7B."""

    name: str = "llama"
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_key_value_heads: PositiveInt | None = None
    """Default: num_attention_heads; fewer share keys and values (grouped-query attention)."""
    intermediate_size: PositiveInt | None = None
    """Default 8/3 × hidden_size, rounded up to a multiple of 64 (the MLP is gated)."""
    max_position_embeddings: PositiveInt = 2048
    rope_theta: PositiveFloat = 10_000.0
    rms_norm_eps: PositiveFloat = 1e-5
    attention_dropout: Share = 0.0


class LlamaEncoder(CausalTextEncoder):
    """Pre-norm blocks with RMSNorm, rotary positions, gated MLPs, no biases."""

    Config = LlamaEncoderConfig
    HFConfig = LlamaConfig
    HFModel = LlamaModel
    model_types = ("llama",)
    model: LlamaModel

    def derived_values(self) -> dict[str, Any]:
        size = self.config.intermediate_size or -(-8 * self.config.hidden_size // (3 * 64)) * 64
        rope = (self.config.transformers or {}).get("rope_parameters") or {"rope_type": "default"}
        if "rope_theta" in rope:
            raise UserError(
                f"encoder.transformers.rope_parameters.rope_theta={rope['rope_theta']}: is a setting of its own; give "
                "encoder.rope_theta"
            )
        return {
            "intermediate_size": size,
            "rope_parameters": {**rope, "rope_theta": self.config.rope_theta},
        }

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.norm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """`transformers` keeps the base of the rotary positions among their parameters."""
        settings = super().settings_from(folder, values)
        theta = settings["transformers"]["rope_parameters"].pop("rope_theta")
        return {**settings, "rope_theta": float(theta)}
