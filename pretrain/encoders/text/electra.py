"""ELECTRA's encoder (Clark et al. 2020, arXiv:2003.10555) on `transformers.ElectraModel`: BERT, whose embeddings may be
narrower than its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt
from torch import nn
from transformers import ElectraConfig, ElectraModel

from data_tools.errors import UserError
from pretrain.encoders.text.bert import BertEncoder, BertEncoderConfig


@dataclass(frozen=True)
class ElectraEncoderConfig(BertEncoderConfig):
    """Names as in `transformers.ElectraConfig`; defaults are ELECTRA-small's, without dropout."""

    name: str = "electra"
    embedding_size: PositiveInt = 128
    """Width of the embeddings, and of what decodes with them."""
    hidden_size: PositiveInt = 256
    num_attention_heads: PositiveInt = 4


class ElectraEncoder(BertEncoder):
    """Embeddings, a projection where their width is another, BERT's blocks."""

    Config = ElectraEncoderConfig
    HFConfig = ElectraConfig
    HFModel = ElectraModel
    model_types = ("electra",)
    model: ElectraModel  # type: ignore[assignment]

    def derived_values(self) -> dict[str, Any]:
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        if width % heads:  # `transformers` refuses that of a BERT, and lets it pass here
            raise UserError(
                f"encoder (electra): hidden_size={width} is no multiple of num_attention_heads={heads}; change one"
            )
        return super().derived_values()

    def prediction_transform(self) -> nn.Module:
        """To the width of the embeddings: (…, D) → (…, E)."""
        from transformers.models.electra.modeling_electra import ElectraGeneratorPredictions

        return ElectraGeneratorPredictions(self.model.config).apply(self.model._init_weights)
