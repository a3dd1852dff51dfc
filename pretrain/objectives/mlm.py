"""Masked language modelling (BERT, Devlin et al. 2018, arXiv:1810.04805): hide tokens, guess them from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.text.base import BidirectionalTextEncoder, TextEncoder
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.objectives.masking import Unit, hide_tokens, read_vocabulary
from pretrain.ops.linear_cross_entropy import IGNORE, linear_cross_entropy
from pretrain.tracking.pictures import TextExcerpt, TextExcerpts

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class MLMConfig:
    """BERT's replacement at the ratio that trains better than its 15 % (Wettig et al. 2022, arXiv:2202.08005)."""

    name: str = "mlm"
    mask_ratio: float = 0.3
    unit: Unit = "token"
    """What is hidden as a whole: single tokens, words, or spans of words (SpanBERT)."""
    replacement: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of hidden places with [MASK], with a random token, and with the token itself."""


class MLM(Objective):
    """Mean over hidden tokens of −log p(token), with a decoder that shares the input embeddings."""

    Config = MLMConfig
    hides = "tokens, words or spans"
    is_likelihood = True
    needs: ClassVar[Mapping[str, str]] = {"bidirectional": "MLM guesses from both sides"}
    alternatives = ("clm",)
    encoder: BidirectionalTextEncoder

    def __init__(self, config: MLMConfig, encoder: BidirectionalTextEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        check_masking(config, encoder)
        self.vocabulary = read_vocabulary(encoder.tokenizer, encoder.vocab_size)
        self.head = MLMHead(encoder.prediction_transform(), encoder.vocab_size)
        self.roles["head"] = self.head

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"tokens", "document_ids", "position_ids": (L,), "masked", "target": (K,)}: a row, and what it hides."""
        row, config = self.encoder.row_of(sample, rng), self.config
        return hide_tokens(row, self.vocabulary, config.mask_ratio, config.unit, config.replacement, rng)

    def count(self, phase: Phase, batch: Batch) -> float:
        """Hidden tokens."""
        return float((batch["target"] != IGNORE).sum())

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        loss, right = self.roles["head"](
            self.hidden(batch).flatten(0, 1), self.encoder.token_embedding, batch["target"].flatten()
        )
        return Loss(loss, {"accuracy": right})

    def hidden(self, batch: Batch) -> Tensor:
        """The encoder's output at the hidden places only: (B, K, D)."""
        tokens = self.roles["encoder"](batch)  # (B, L, D)
        return tokens.gather(1, batch["masked"].unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def picture(self, batch: Batch) -> TextExcerpts:
        """Each row with its gaps filled in: right, or wrong and then the truth."""
        guess = self.head.logits(self.hidden(batch), self.encoder.token_embedding).argmax(-1)  # (B, K)
        rows = zip(
            *(batch[n].tolist() for n in ("tokens", "document_ids", "masked", "target")),
            guess.tolist(),
            strict=True,
        )
        return TextExcerpts([self.filled(*row) for row in rows])

    def filled(
        self,
        tokens: list[int],
        document_ids: list[int],
        masked: list[int],
        target: list[int],
        guess: list[int],
    ) -> TextExcerpt:
        """One row as marked parts of text."""
        gaps = {place: (g, t) for place, g, t in zip(masked, guess, target, strict=True) if t != IGNORE}
        parts: list[tuple[list[int], str]] = []
        for place, token in enumerate(tokens):
            if not document_ids[place]:
                continue
            if place not in gaps:
                append(parts, token, "given")
                continue
            filled_in, truth = gaps[place]
            append(parts, filled_in, "right" if filled_in == truth else "wrong")
            if filled_in != truth:
                append(parts, truth, "truth")
        return TextExcerpt([(self.encoder.tokenizer.decode(ids), kind) for ids, kind in parts])


class MLMHead(nn.Module):
    """The family's transform, then the input embeddings as decoder, and a bias of its own.

    The embeddings are passed in: the encoder owns them, so that no engine or checkpoint sees them twice.
    """

    def __init__(self, transform: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.transform = transform
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, embedding: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (N, D), embedding (V, D), target (N,) → the summed loss, and how many guesses are right."""
        return linear_cross_entropy(self.transform(hidden), embedding, self.bias, target)

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(…, D) → (…, V)."""
        return nn.functional.linear(self.transform(hidden), embedding, self.bias)


def append(parts: list[tuple[list[int], str]], token: int, kind: str) -> None:
    """Add a token to the last part, or begin a new one where the kind changes."""
    if parts and parts[-1][1] == kind:
        parts[-1][0].append(token)
    else:
        parts.append(([token], kind))


def check_masking(config: Any, encoder: TextEncoder) -> None:
    """Raise a `UserError` for settings of hidden tokens that cannot work, or a tokenizer without a mask token."""
    if getattr(encoder.tokenizer, "mask_token_id", None) is None:
        raise UserError(
            f"{encoder.tokenizer_folder or encoder.dataset_folder}: objective.name={config.name} needs a tokenizer "
            "with a mask token beside the data; make one with `python -m data_tools tokenizer`"
        )
    if not 0 < config.mask_ratio < 1:
        raise UserError(f"objective.mask_ratio={config.mask_ratio}: must lie between 0 and 1")
    if min(config.replacement) < 0 or abs(sum(config.replacement) - 1) > 1e-6:
        raise UserError(
            f"objective.replacement={list(config.replacement)}: shares of [MASK], random and same token; "
            "must add up to 1"
        )
