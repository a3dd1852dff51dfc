"""GPT-2 (Radford et al. 2019) on `transformers.GPT2Model`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt
from torch import nn
from transformers import GPT2Config, GPT2Model

from pretrain.config.schema import Share
from pretrain.encoders.text.base import CausalTextEncoder, TextEncoderConfig


@dataclass(frozen=True)
class GPT2EncoderConfig(TextEncoderConfig):
    """Names as in `transformers.GPT2Config`; defaults are the 124M model's, without dropout."""

    name: str = "gpt2"
    n_embd: PositiveInt = 768
    n_layer: PositiveInt = 12
    n_head: PositiveInt = 12
    n_inner: PositiveInt | None = None
    """Default 4 × n_embd."""
    n_positions: PositiveInt = 1024
    activation_function: str = "gelu_new"
    resid_pdrop: Share = 0.0
    embd_pdrop: Share = 0.0
    attn_pdrop: Share = 0.0


class GPT2Encoder(CausalTextEncoder):
    """Pre-norm blocks, learned positions; projections into the residual stream start 1/√(2·n_layer) smaller."""

    Config = GPT2EncoderConfig
    HFConfig = GPT2Config
    HFModel = GPT2Model
    model_types = ("gpt2",)
    model: GPT2Model

    def blocks(self) -> list[nn.Module]:
        return list(self.model.h)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.ln_f]
