"""Causal language modelling (GPT, Radford et al. 2018): guess each token from those before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.encoders.text.base import CausalTextEncoder
from pretrain.encoders.text.tokenizer import bytes_of_tokens
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.ops.linear_cross_entropy import IGNORE, linear_cross_entropy
from pretrain.tracking.pictures import TextExcerpt, TextExcerpts

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

PROMPT_TOKENS, NEW_TOKENS = 16, 48
TOP_K, TEMPERATURE = 50, 0.8


@dataclass(frozen=True)
class CLMConfig:
    """Next-token prediction within documents."""

    name: str = "clm"
    tie_embeddings: bool = True
    """The output layer is the input embeddings (GPT-2, small Llamas), or a matrix of its own."""


class CLM(Objective):
    """Mean over tokens of −log p(next token of the same document)."""

    Config = CLMConfig
    hides = "the next token"
    is_likelihood = True
    needs: ClassVar[Mapping[str, str]] = {"causal": "sees what CLM must guess"}
    alternatives = ("mlm",)
    encoder: CausalTextEncoder

    def __init__(self, config: CLMConfig, encoder: CausalTextEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not config.tie_embeddings:
            head = OutputLayer(encoder.dim, encoder.vocab_size, bias=False)
            nn.init.normal_(head.weight, std=encoder.config.initializer_range)
            self.roles["head"] = head
        self.token_bytes = None if encoder.tokenizer is None else bytes_of_tokens(encoder.tokenizer)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"tokens", "document_ids", "position_ids", "target"}: (L,) each; a document's last token guesses nothing."""
        row = self.encoder.row_of(sample, rng)
        tokens, document_ids = row["tokens"], row["document_ids"]
        target = np.full(len(tokens), IGNORE, dtype=np.int64)
        followed = np.flatnonzero((document_ids[1:] == document_ids[:-1]) & (document_ids[:-1] > 0))
        target[followed] = tokens[followed + 1]
        return {**row, "target": target}

    def count(self, phase: Phase, batch: Batch) -> float:
        """Tokens that are followed by one of their own document."""
        return float((batch["target"] != IGNORE).sum())

    def count_bytes(self, batch: Batch) -> float | None:
        """Of the tokens that are guessed; known where the tokenizer is one of bytes."""
        if self.token_bytes is None:
            return None
        target = batch["target"]
        return float(self.token_bytes[target[target != IGNORE].numpy()].sum())

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        hidden = self.roles["encoder"](batch).flatten(0, 1)  # (B·L, D)
        target = batch["target"].flatten()
        if self.config.tie_embeddings:
            loss, right = linear_cross_entropy(hidden, self.encoder.token_embedding, None, target)
        else:
            loss, right = self.roles["head"](hidden, target)
        return Loss(loss, {"accuracy": right})

    @property
    def output_weight(self) -> Tensor:
        """(V, D); tied, it is the encoder's own parameter, so that no engine or checkpoint sees it twice."""
        if self.config.tie_embeddings:
            return self.encoder.token_embedding
        return self.roles["head"].weight  # type: ignore[return-value]

    def picture(self, batch: Batch) -> TextExcerpts | None:
        """The beginnings of rows, and how the model goes on from there, up to where it lets the text end.

        Sampled, always with the same seed.
        """
        if self.encoder.tokenizer is None:
            return None
        size = min(PROMPT_TOKENS, batch["tokens"].shape[1], self.encoder.max_positions // 2)
        whole = batch["document_ids"][:, size - 1] == 1  # the first document is long enough
        prompts = batch["tokens"][whole][:, :size]
        if not len(prompts):
            return None
        written = self.continue_from(prompts, min(NEW_TOKENS, self.encoder.max_positions - size))
        decode, end = self.encoder.tokenizer.decode, self.encoder.tokenizer.eos_token_id
        return TextExcerpts(
            [
                TextExcerpt(
                    [
                        (decode(row[:size].tolist()), "given"),
                        (decode(until(end, row[size:].tolist())), "generated"),
                    ]
                )
                for row in written
            ]
        )

    def continue_from(self, prompts: Tensor, new_tokens: int) -> Tensor:
        """Prompts (B, P) → (B, P + new_tokens), sampled from the `TOP_K` likeliest at `TEMPERATURE`."""
        generator = torch.Generator().manual_seed(0)
        tokens = prompts.long()
        for _ in range(new_tokens):
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            row = {"tokens": tokens, "position_ids": positions, "document_ids": torch.ones_like(tokens)}
            hidden = self.roles["encoder"](row)[:, -1]  # (B, D)
            logits = nn.functional.linear(hidden, self.output_weight).float()  # (B, V)
            top, ids = logits.topk(min(TOP_K, logits.shape[1]))  # (B, k)
            chosen = torch.multinomial((top / TEMPERATURE).softmax(-1).cpu(), 1, generator=generator)
            tokens = torch.cat([tokens, ids.gather(1, chosen.to(ids.device))], dim=1)
        return tokens


def until(end: int | None, tokens: list[int]) -> list[int]:
    """The tokens before the first end-of-text token; all of them where there is none."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


class OutputLayer(nn.Linear):
    """A matrix of the head's own, whose forward is the loss: the logits need never be there all at once."""

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """hidden (N, D), target (N,) → the summed loss, and how many guesses are right."""
        return linear_cross_entropy(hidden, self.weight, None, target)
