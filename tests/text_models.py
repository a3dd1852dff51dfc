"""Tiny text encoders of every family, a tokenizer trained in a moment, and rows with several documents in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools.schema import build_section
from data_tools.tokenizer import save_tokenizer, train_tokenizer
from pretrain.encoders import encoder_class
from pretrain.objectives.base import stack
from pretrain.weights.model_folder import ModelFolder

TEXTS = (
    "the state of the union is strong, and the people of these states know it.",
    "congress has the power to lay taxes; congress shall use it wisely in peace and in war.",
    "our farmers, our soldiers and our workers — all of them — asked for nothing but justice.",
)
SIZES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "modernbert": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "local_attention": 8,
    },
    "electra": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
}
FAMILIES = tuple(SIZES)
BIDIRECTIONAL, CAUSAL = FAMILIES[:3], FAMILIES[3:]


def make_tokenizer(folder: Path) -> ModelFolder:
    """A byte-level BPE of 320 tokens in `folder`, as it lies beside tokenised data."""
    save_tokenizer(train_tokenizer(TEXTS * 3, 320), folder, length=64)
    return ModelFolder(folder)


def make_encoder(family: str, dataset: Any, **settings: Any) -> Any:
    """A tiny encoder in evaluation mode, its weights large enough for differences to show."""
    cls = encoder_class(family)
    values = {"name": family, "max_length": 32, "initializer_range": 0.2, **SIZES[family], **settings}
    torch.manual_seed(0)
    encoder = cls(build_section(cls.Config, values, "encoder"), dataset)
    with torch.no_grad():  # norms and biases start at one and zero, where mistakes hide
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return encoder.eval()


def packed_rows(
    vocabulary: int, rows: int = 3, length: int = 32, padding: int = 3
) -> dict[str, torch.Tensor]:
    """Rows of two documents and padding, as `PackedStream` gives them, already stacked."""
    rng = np.random.default_rng(0)
    samples = [packed_row(rng, vocabulary, length, padding, first=10 + r) for r in range(rows)]
    return stack([{name: value for name, value in s.items() if name != "__key__"} for s in samples])


def packed_row(
    rng: np.random.Generator, vocabulary: int, length: int, padding: int, first: int
) -> dict[str, Any]:
    second = length - padding - first
    tokens = rng.integers(6, vocabulary, length)
    tokens[length - padding :] = 0
    document_ids = np.repeat([1, 2, 0], [first, second, padding])
    positions = np.concatenate([np.arange(first), np.arange(second), np.zeros(padding, dtype=np.int64)])
    return {
        "__key__": "row",
        "tokens": tokens.astype(np.int32),
        "document_ids": document_ids,
        "position_ids": positions,
    }
