"""What the text encoders share: tokens of a sample as rows of fixed length, documents kept apart, pooling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.base import Encoder, PretrainedConfig, field
from pretrain.encoders.hf_model import (
    build_hf_config,
    build_hf_model,
    pooler_option,
    read_hf_config,
    split_settings,
)
from pretrain.encoders.text.card import text_code
from pretrain.encoders.text.tokenizer import (
    copy_tokenizer,
    find_tokenizer,
    fingerprint_of,
    open_tokenizer,
    tokens_by_id,
)
from pretrain.ops.attention import attention_mask, find_document_starts

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

Pooling = Literal["mean", "first", "last"]
"""The mean over all tokens, or the first or last token alone. A small causal encoder knows little at its last token
(it is trained to say what follows, which is often a full stop's business), so the mean is every family's default."""


ID_NAMES = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True)
class TextEncoderConfig(PretrainedConfig):
    """What all families of text have; the others of their names are those of their `transformers` configuration."""

    vocab_size: PositiveInt | None = None
    """Default: the tokenizer's."""
    initializer_range: PositiveFloat = 0.02
    max_length: PositiveInt = 512
    """Tokens of a sample that is not packed: longer ones are cut, shorter ones padded."""
    pooling: Pooling = "mean"


class TextEncoder(Encoder):
    """Token ids in, one vector a token out; several documents in one row do not see each other.

    A batch has `tokens`, `document_ids` (the number of the document in its row, 0 where there is padding) and
    `position_ids` (restarting at each document), all (B, L), and from the loader `document_starts` (B, K + 1).
    """

    modality = "text"
    HFModel: ClassVar[Any]
    """The family's base model in `transformers`."""
    causal: ClassVar[bool]
    """Whether a token sees only those before it."""

    def __init__(self, config: Any, dataset: Dataset | None = None) -> None:
        super().__init__(config, dataset)
        self.tokenizer_folder = find_tokenizer(dataset)
        self.tokenizer: Any = open_tokenizer(self.tokenizer_folder) if self.tokenizer_folder else None
        self.vocab_size = self.count_vocabulary()
        try:
            self.model = build_hf_model(self.HFModel, self.hf_config())
        except UserError:
            raise
        except Exception as error:  # sizes that do not fit together; transformers raises several kinds
            raise UserError(f"encoder ({config.name}): {' '.join(str(error).split())[-300:]}") from None
        self.max_positions = int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
        self.dim = int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        if not 0 < config.max_length <= self.max_positions:
            raise UserError(
                f"encoder.max_length={config.max_length}: must lie between 1 and the encoder's {self.max_positions} "
                "positions"
            )

    def count_vocabulary(self) -> int:
        """As the settings say, else as many as the tokenizer has ids, those in its gaps included."""
        size = self.config.vocab_size
        known = len(tokens_by_id(self.tokenizer)) if self.tokenizer is not None else None
        if size is None and known is None:
            raise UserError(
                f"encoder.vocab_size: unknown, for there is no tokenizer beside the data ({self.dataset_folder}); "
                "tokenize them with `python -m data_tools tokenize`, or give the number"
            )
        if size is not None and known is not None and size < known:
            raise UserError(f"encoder.vocab_size={size}: the tokenizer has {known} tokens; leave it out")
        return int(size if size is not None else known)  # type: ignore[arg-type]

    def hf_config(self) -> Any:
        """Our settings as `transformers` writes them; the tokenizer's special tokens unless a folder says others."""
        known = self.HFConfig()
        ids = {name: getattr(self.tokenizer, name, None) for name in ID_NAMES if hasattr(known, name)}
        defaults = {**ids, "attn_implementation": "sdpa"}
        # Objectives decode with the input embeddings, so whoever adds a head to a release is to tie it too.
        values = {"vocab_size": self.vocab_size, "tie_word_embeddings": True, **self.derived_values()}
        return build_hf_config(self.HFConfig, self.config, self.derived, defaults, values)

    def derived_values(self) -> dict[str, Any]:
        """What of the `transformers` configuration follows from settings that it has no word for."""
        return {}

    @property
    def token_embedding(self) -> Tensor:
        """The input embeddings (V, D), which heads share."""
        return self.model.get_input_embeddings().weight  # type: ignore[operator]

    @property
    def attention(self) -> str:
        """The attention back end by its name in `transformers`."""
        return str(self.model.config._attn_implementation)  # type: ignore[union-attr]

    @property
    def pad_id(self) -> int:
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """{"tokens", "document_ids", "position_ids"}, (max_length,) each: the sample's first tokens, padded."""
        return self.row(self.tokens_of(sample, self.config.max_length))

    def random_view(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """At least half of the sample's first `max_length` tokens, from a random place on."""
        ids = self.tokens_of(sample, self.config.max_length)
        length = int(rng.integers((len(ids) + 1) // 2, len(ids) + 1))
        start = int(rng.integers(len(ids) - length + 1))
        return self.row(ids[start : start + length])

    @classmethod
    def collate(cls, views: list[dict[str, Any]]) -> dict[str, Tensor]:
        """With where documents begin, looked for while the rows still lie on the host."""
        batch = super().collate(views)
        return {**batch, "document_starts": find_document_starts(batch["document_ids"])}

    def row_of(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A row to train on: a packed one as it is, else a window of the sample's tokens, anywhere, padded."""
        if "document_ids" in sample:
            self.check_tokens(sample["tokens"], sample)
            return {
                name: sample[name].astype(np.int64) for name in ("tokens", "document_ids", "position_ids")
            }
        ids = self.tokens_of(sample)
        start = int(rng.integers(max(0, len(ids) - self.config.max_length) + 1))
        return self.row(ids[start : start + self.config.max_length])

    def tokens_of(self, sample: dict[str, Any], at_most: int | None = None) -> np.ndarray:
        """The sample's token ids (n,): its own, or those of its text with what the tokenizer puts around a text."""
        if "tokens" in sample:
            self.check_tokens(sample["tokens"], sample)
            return sample["tokens"][:at_most].astype(np.int64)
        text = field(sample, "text")
        if self.tokenizer is None:
            raise UserError(
                f"sample {sample.get('__key__')!r}: is text, and there is no tokenizer beside the data "
                f"({self.dataset_folder}); make one with `python -m data_tools tokenizer`"
            )
        ids = self.tokenizer(
            text,
            truncation=at_most is not None,
            max_length=at_most,
            verbose=False,
            return_attention_mask=False,
        )["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def offsets_of(self, sample: dict[str, Any]) -> np.ndarray:
        """Where in its text each token of a `view` begins and ends (n, 2), in characters; special ones are empty.

        Raises:
            UserError: the sample has no text that its tokens come from, or the tokenizer cannot say.
        """
        if "tokens" in sample or not getattr(self.tokenizer, "is_fast", False):
            why = (
                "is tokens already"
                if "tokens" in sample
                else "needs a tokenizer that knows where tokens stand"
            )
            raise UserError(
                f"sample {sample.get('__key__')!r}: {why}; words are asked of texts, by a tokenizer.json beside them"
            )
        encoding = self.tokenizer(
            field(sample, "text"),
            truncation=True,
            max_length=self.config.max_length,
            verbose=False,
            return_offsets_mapping=True,
        )
        return np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def row(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """One document as a row of `max_length`, padding on the right."""
        length, used = self.config.max_length, len(ids)
        tokens = np.full(length, self.pad_id, dtype=np.int64)
        document_ids, positions = np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64)
        tokens[:used], document_ids[:used], positions[:used] = ids, 1, np.arange(used)
        return {"tokens": tokens, "document_ids": document_ids, "position_ids": positions}

    def check_tokens(self, ids: np.ndarray, sample: dict[str, Any]) -> None:
        """Raise a `UserError` for a token number that the encoder's vocabulary does not have."""
        if len(ids) and ids.max() >= self.vocab_size:
            raise UserError(
                f"sample {sample.get('__key__')!r}: has the token {ids.max()}, the encoder only {self.vocab_size} "
                "tokens: another tokenizer made it; tokenize the texts anew with the encoder's"
            )

    def check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.max_positions:
            raise UserError(
                f"rows of {tokens.shape[1]} tokens (data.sequence_length): the encoder has {self.max_positions} "
                "positions; shorten the rows or raise its maximum"
            )

    def raw_features(self, batch: dict[str, Any]) -> Tensor:
        """How often each token of the vocabulary stands in it."""
        tokens, valid = batch["tokens"].long(), batch["document_ids"] > 0  # (B, L)
        counts = torch.zeros(len(tokens), self.vocab_size, device=tokens.device)
        return counts.scatter_add_(1, tokens, valid.float())

    def pool(self, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """(B, L, D) → (B, D), padding left out."""
        valid = batch["document_ids"] > 0  # (B, L)
        if self.config.pooling == "mean":
            weight = valid.to(tokens.dtype).unsqueeze(-1)  # (B, L, 1)
            return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
        if self.config.pooling == "first":
            return tokens[:, 0]
        last = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(1)  # (B,)
        return tokens.gather(1, last.view(-1, 1, 1).expand(-1, 1, tokens.shape[2]))[:, 0]

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        hf = read_hf_config(cls.HFConfig, values, folder)
        own = split_settings(hf, cls.Config, cls.derived)
        return {**own, "max_length": min(512, hf.max_position_embeddings)}

    def card_code(self) -> str:
        return text_code(self.config.pooling, pooler_option(self.HFModel))

    def find_valid(self, batch: dict[str, Any]) -> Tensor:
        valid: Tensor = batch["document_ids"] > 0  # (B, L)
        return valid

    def plain_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"input_ids": batch["tokens"].long(), "attention_mask": self.find_valid(batch).long()}

    def check_data(self, dataset: Any, place: str) -> None:
        """Refuse token numbers that another tokenizer gave. Plain texts are always read by the encoder's own."""
        ours, theirs = fingerprint_of(self.tokenizer_folder), fingerprint_of(find_tokenizer(dataset))
        if "tokens" in dataset.fields and ours and theirs and ours != theirs:
            raise UserError(
                f"{place}: its token numbers are those of another tokenizer than the encoder's "
                f"({self.tokenizer_folder}); tokenize the texts anew with `python -m data_tools tokenize --tokenizer "
                f"{self.tokenizer_folder}`"
            )

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)  # type: ignore[operator]
        if self.tokenizer_folder:
            copy_tokenizer(self.tokenizer_folder, folder)


class BidirectionalTextEncoder(TextEncoder):
    """Every token sees its whole document."""

    causal = False
    gives = frozenset({"text", "bidirectional"})

    def prediction_transform(self) -> nn.Module:
        """What the family puts between the encoder and the tied decoder: (…, D) → (…, D)."""
        raise TypeError(f"{type(self).__name__} must define prediction_transform()")


class CausalTextEncoder(TextEncoder):
    """Every token sees its own document up to itself.

    The mask that keeps documents apart is ours. `transformers` would make one of restarting positions, but waits for
    the device to learn whether there are any; with a cache it would let documents leak.
    """

    causal = True
    gives = frozenset({"text", "causal"})

    def forward(self, batch: dict[str, Any], **hidden: Any) -> Tensor:
        """(B, L, D) of `tokens`, `document_ids`, `position_ids` (B, L)."""
        self.check_length(batch["tokens"])
        return self.model(
            input_ids=batch["tokens"].long(),
            position_ids=batch["position_ids"].long(),
            attention_mask=attention_mask(batch, self.attention, causal=True),
            use_cache=False,
        ).last_hidden_state
