"""Byte-level BPE through ``tokenizers``: trained on a data set's text, saved as a folder transformers opens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
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


LONGEST_PIECE = 1 << 20
"""Characters that a tokenizer is given at once."""
LONGEST_WORD = 1000
"""Characters of a word that a tokenizer is trained on; no token becomes as long."""


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
    pieces = (piece for text in texts for part in cut_text(text) for piece in cut_words(part))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def cut_text(text: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    """A text in pieces of at most ``longest`` characters, whole if it is not longer.

    It is cut before white space, where all usual tokenizers cut too, or between any characters where there is none in
    the second half of a piece: tokenizers take some 150 bytes of memory for each character of a call.
    """
    start = 0
    while len(text) - start > longest:
        middle, last = start + longest // 2, start + longest
        cut = max(text.rfind(" ", middle, last), text.rfind("\n", middle, last))
        end = cut if cut > 0 else last
        yield text[start:end]
        start = end
    yield text[start:]


def cut_words(text: str) -> Iterator[str]:
    """A text, cut where a word or white space is longer than ``LONGEST_WORD``: training is quadratic in its length."""
    start = 0
    for word in _LONG_WORD.finditer(text):
        for end in range(word.start() + LONGEST_WORD, word.end(), LONGEST_WORD):
            yield text[start:end]
            start = end
    yield text[start:]


_LONG_WORD = re.compile(rf"(?<!\S)\S{{{LONGEST_WORD + 1},}}|(?<!\s)\s{{{LONGEST_WORD + 1},}}")


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
    """The tokenizer of a folder with ``tokenizer.json``, which gives every token of a text, and no control tokens.

    Truncation and padding that were saved with it are how somebody last called it, and off here. The name of a special
    token that stands in a text (``<|endoftext|>``) is ordinary text.

    Raises:
        UserError: there is none.
    """
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder}: has no tokenizer.json; train one with `python -m data_tools tokenizer`")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"{path}: not a tokenizer ({error}); train one with `python -m data_tools tokenizer`"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
    """The token ids (n,) of each text, all of them, without special tokens around it.

    Memory is bounded by one text: they are encoded a few pieces at a time.
    """
    parts: list[NDArray[np.uint32]] = []
    for pieces in _in_calls(texts):
        encoded = tokenizer.encode_batch([piece for piece, _ in pieces], add_special_tokens=False)
        for encoding, (_, is_last) in zip(encoded, pieces, strict=True):
            parts.append(np.array(encoding.ids, dtype=np.uint32))
            if is_last:
                yield np.concatenate(parts)
                parts = []


def _in_calls(texts: Sequence[str]) -> Iterator[list[tuple[str, bool]]]:
    """(piece, whether its text ends with it) of all texts, about ``LONGEST_PIECE`` characters at a time."""
    call: list[tuple[str, bool]] = []
    room = LONGEST_PIECE
    for text in texts:
        left = len(text)
        for piece in cut_text(text):
            left -= len(piece)
            call.append((piece, left == 0))
            room -= len(piece)
            if room <= 0:
                yield call
                call, room = [], LONGEST_PIECE
    if call:
        yield call
