"""GPT-2 (Radford et al. 2019) on `transformers.GPT2Model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import GPT2Config, GPT2Model

from pretrain.encoders.text.base import CausalTextEncoder, Pooling


@dataclass(frozen=True)
class GPT2EncoderConfig:
    """Names as in `transformers.GPT2Config`; defaults are the 124M model's, without dropout."""

    name: str = "gpt2"
    from_pretrained: str | None = None
    """A `transformers` folder or a release to start from; sizes are the folder's unless set here."""
    transformers: dict[str, Any] | None = None
    """What no setting here says, in words of `transformers`: `{scale_attn_by_inverse_layer_idx: true}`.
    With `from_pretrained` the folder\'s, whole, where it is not set here."""
    vocab_size: int | None = None
    """Default: the tokenizer's."""
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    """Default 4 × n_embd."""
    n_positions: int = 1024
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    initializer_range: float = 0.02
    max_length: int = 512
    """Tokens of a sample that is not packed: longer ones are cut, shorter ones padded."""
    pooling: Pooling = "mean"


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
