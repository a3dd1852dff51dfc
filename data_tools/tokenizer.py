"""Byte-level BPE through ``tokenizers``: trained on a data set's text, saved as a folder transformers opens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_tools.dataset.dataset import Dataset
from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<|endoftext|>")  # ids 0 … 5
_ROLES = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
}


def train_tokenizer(texts: Iterable[str], vocabulary: int, progress: bool = False) -> Tokenizer:
    """Byte-level BPE (GPT-2's) with the special tokens of BERT- and GPT-like models."""
    least = len(SPECIAL_TOKENS) + 256
    if vocabulary < least:
        raise UserError(
            f"--vocabulary {vocabulary}: must be at least {least} (256 bytes and the special tokens)"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(dataset: Dataset) -> Iterator[str]:
    """The text of every sample; raises UserError when there is none."""
    if "text" not in dataset.fields:
        raise UserError(
            f"{dataset.folder}: samples have {', '.join(dataset.fields)}, no text; pack text first"
        )
    return (sample["text"] for sample in dataset if sample.get("text"))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; ``length``: what the model will take at most."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **_ROLES,
    }
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with ``tokenizer.json``; raises UserError when there is none."""
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder}: has no tokenizer.json; train one with `python -m data_tools tokenizer`")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"{path}: not a tokenizer ({error}); train one with `python -m data_tools tokenizer`"
        ) from None
