"""BERT (Devlin et al. 2018, arXiv:1810.04805) on `transformers.BertModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pretrain.config.schema import Share
from pretrain.encoders.text.base import BidirectionalTextEncoder, TextEncoderConfig
from pretrain.ops.attention import attention_mask


@dataclass(frozen=True)
class BertEncoderConfig(TextEncoderConfig):
    """Names as in `transformers.BertConfig`; defaults are BERT-base's, without dropout."""

    name: str = "bert"
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt | None = None
    """Default 4 × hidden_size."""
    hidden_act: str = "gelu"
    hidden_dropout_prob: Share = 0.0
    attention_probs_dropout_prob: Share = 0.0
    max_position_embeddings: PositiveInt = 512


class BertEncoder(BidirectionalTextEncoder):
    """Post-norm blocks, learned positions, every token sees its whole document."""

    Config = BertEncoderConfig
    gives = frozenset({"text", "bidirectional", "embedded"})
    HFConfig: ClassVar[Any] = BertConfig
    HFModel: ClassVar[Any] = BertModel
    model_types = ("bert",)
    model: BertModel

    def derived_values(self) -> dict[str, Any]:
        return {"intermediate_size": self.config.intermediate_size or 4 * self.config.hidden_size}

    def forward(self, batch: dict[str, Any], embed_only: bool = False, **hidden: Any) -> Tensor:
        """(B, L, D) of `tokens`, `document_ids`, `position_ids` (B, L).

        `embed_only` gives the embedded tokens (B, L, E) that the blocks would see, for another network with blocks of
        its own (ELECTRA's generator).
        """
        self.check_length(batch["tokens"])
        if embed_only:
            return self.model.embeddings(
                input_ids=batch["tokens"].long(), position_ids=batch["position_ids"].long()
            )
        return self.model(
            input_ids=batch["tokens"].long(),
            position_ids=batch["position_ids"].long(),
            attention_mask=attention_mask(batch, self.attention),
        ).last_hidden_state

    def prediction_transform(self) -> nn.Module:
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        return BertPredictionHeadTransform(self.model.config).apply(self.model._init_weights)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)
