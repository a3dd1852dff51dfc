"""ModernBERT (Warner et al. 2024, arXiv:2412.13663) on `transformers.ModernBertModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertModel

from data_tools.errors import UserError
from pretrain.config.schema import Share
from pretrain.encoders.hf_model import read_hf_config
from pretrain.encoders.text.base import BidirectionalTextEncoder, TextEncoderConfig
from pretrain.ops.attention import VARLEN, attention_mask


@dataclass(frozen=True)
class ModernBertEncoderConfig(TextEncoderConfig):
    """Names as in `transformers.ModernBertConfig`; defaults are ModernBERT-base's."""

    name: str = "modernbert"
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 22
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt | None = None
    """Default 3/2 × hidden_size (the MLP is gated)."""
    max_position_embeddings: PositiveInt = 8192
    local_attention: PositiveInt = 128
    """Width of the window in which the layers between global ones attend."""
    global_attn_every_n_layers: PositiveInt = 3
    attention_dropout: Share = 0.0
    embedding_dropout: Share = 0.0
    mlp_dropout: Share = 0.0


class ModernBertEncoder(BidirectionalTextEncoder):
    """Pre-norm blocks, rotary positions, gated MLPs, global attention in every third layer and local elsewhere."""

    Config = ModernBertEncoderConfig
    HFConfig = ModernBertConfig
    HFModel = ModernBertModel
    derived = ("layer_types",)
    model_types = ("modernbert",)
    model: ModernBertModel

    def derived_values(self) -> dict[str, Any]:
        c = self.config
        return {
            "intermediate_size": c.intermediate_size or 3 * c.hidden_size // 2,
            "layer_types": layer_kinds(c.num_hidden_layers, c.global_attn_every_n_layers),
        }

    def forward(self, batch: dict[str, Any], **hidden: Any) -> Tensor:
        """(B, L, D) of `tokens`, `document_ids`, `position_ids` (B, L).

        The model ignores documents that only `position_ids` tell apart, so both of its masks are given.
        """
        self.check_length(batch["tokens"])
        full, window = attention_mask(batch, self.attention), self.model.config.sliding_window
        local = full if self.attention == VARLEN else attention_mask(batch, self.attention, window)
        return self.model(
            input_ids=batch["tokens"].long(),
            position_ids=batch["position_ids"].long(),
            attention_mask={"full_attention": full, "sliding_attention": local},
        ).last_hidden_state

    def prediction_transform(self) -> nn.Module:
        from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead

        return ModernBertPredictionHead(self.model.config).apply(self.model._init_weights)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    def after_blocks(self) -> list[nn.Module]:
        return [self.model.final_norm]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """`transformers` writes the kind of each layer; ours is the distance between global ones."""
        kinds = read_hf_config(ModernBertConfig, values, folder).layer_types
        every = next((i for i, kind in enumerate(kinds) if i and kind == "full_attention"), len(kinds))
        if kinds != layer_kinds(len(kinds), every):
            raise UserError(
                f"{folder / 'config.json'}: layer_types={kinds} has no regular distance between global layers, so no "
                "setting describes it; give a folder whose layers 0, n, 2n, … are the global ones"
            )
        return {**super().settings_from(folder, values), "global_attn_every_n_layers": every}


def layer_kinds(layers: int, every: int) -> list[str]:
    """The kind of each layer: global attention in layers 0, `every`, 2 · `every`, …; local in the others."""
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
