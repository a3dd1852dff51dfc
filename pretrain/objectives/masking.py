"""Which tokens of a row are hidden, and what stands there instead: pure functions of a row and a random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.encoders.text.tokenizer import tokens_by_id
from pretrain.ops.linear_cross_entropy import IGNORE

Unit = Literal["token", "word", "span"]
SPAN_P, SPAN_MAX = 0.2, 10
"""SpanBERT (Joshi et al. 2019, arXiv:1907.10529): lengths in words are geometric with p = .2, at most 10."""

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of each token id, (V,) each."""

    special: BoolArray
    """[CLS], padding, …: never hidden, never a random replacement."""
    continues: BoolArray
    """Goes on with the word that the token before it began."""
    mask_id: int

    @property
    def ordinary_ids(self) -> Int64Array:
        return np.flatnonzero(~self.special)


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """Of a `transformers` tokenizer; ids up to `size` that no token has (gaps, padding) count as special."""
    pieces = tokens_by_id(tokenizer)
    special = np.ones(size, dtype=bool)
    special[: len(pieces)] = [not piece for piece in pieces]
    special[tokenizer.all_special_ids] = True
    continues = np.zeros(size, dtype=bool)
    continues[: len(pieces)] = continues_word(pieces)
    return Vocabulary(special, continues & ~special, tokenizer.mask_token_id)


def continues_word(pieces: list[str]) -> BoolArray:
    """Whether each piece goes on with a word, by the marks of WordPiece `##`, byte-level BPE `Ġ`, SentencePiece `▁`."""
    if any(piece.startswith("##") for piece in pieces):
        return np.array([piece.startswith("##") for piece in pieces])
    # The other two mark where a word begins (byte-level BPE writes white space as U+0100 to U+0120).
    byte_level = any(piece.startswith("Ġ") for piece in pieces)
    starts = {chr(code) for code in range(0x100, 0x121)} if byte_level else {"▁"}
    first = [piece[:1] for piece in pieces]
    return np.array([c not in starts and (c.isalnum() or not c.isascii()) for c in first])


def hide_tokens(
    row: dict[str, Int64Array],
    vocabulary: Vocabulary,
    ratio: float,
    unit: Unit,
    shares: tuple[float, float, float],
    rng: np.random.Generator,
) -> dict[str, Int64Array]:
    """A row (L,) with some of its tokens hidden, and which: "masked" (K,), "target" (K,).

    K is the same for all rows of a length; a row with padding leaves some of it unused, with the target `IGNORE`.
    """
    places = choose_masked(row["tokens"], row["document_ids"], vocabulary, ratio, unit, rng)
    slots = max(1, round(ratio * len(row["tokens"])))
    masked, target = np.zeros(slots, dtype=np.int64), np.full(slots, IGNORE, dtype=np.int64)
    masked[: len(places)], target[: len(places)] = places, row["tokens"][places]
    tokens = replace(row["tokens"], places, shares, vocabulary, rng)
    return {**row, "tokens": tokens, "masked": masked, "target": target}


def choose_masked(
    tokens: Int64Array,
    document_ids: Int64Array,
    vocabulary: Vocabulary,
    ratio: float,
    unit: Unit,
    rng: np.random.Generator,
) -> Int64Array:
    """Places to hide, sorted: `round(ratio × maskable tokens)` of them, at least one where there is one to hide.

    Words and spans are hidden whole, so there may be a few less. A single word that is longer than all that may be
    hidden is cut.
    """
    maskable = np.flatnonzero((document_ids > 0) & ~vocabulary.special[tokens])
    if not len(maskable):
        return maskable
    number = max(1, round(ratio * len(maskable)))
    if unit == "token":
        return np.sort(rng.choice(maskable, number, replace=False))
    words = split_words(maskable, tokens, document_ids, vocabulary)
    chosen = choose_words(words, number, unit, document_ids, rng)
    places = np.concatenate([words[w] for w in chosen]) if chosen else words[int(rng.integers(len(words)))]
    return np.sort(places[:number])


def split_words(
    maskable: Int64Array, tokens: Int64Array, document_ids: Int64Array, vocabulary: Vocabulary
) -> list[Int64Array]:
    """The places of each word, in order; a word ends with its document."""
    apart = (np.diff(maskable) != 1) | (np.diff(document_ids[maskable]) != 0)
    starts = ~vocabulary.continues[tokens[maskable]]
    starts[1:] |= apart
    return np.split(maskable, np.flatnonzero(starts[1:]) + 1)


def choose_words(
    words: list[Int64Array], number: int, unit: Unit, document_ids: Int64Array, rng: np.random.Generator
) -> list[int]:
    """Words (or spans of them) in random order, each taken if it still fits into `number` tokens."""
    taken = np.zeros(len(words), dtype=bool)
    room = number
    for first in rng.permutation(len(words)):
        length = min(int(rng.geometric(SPAN_P)), SPAN_MAX) if unit == "span" else 1
        for w in range(first, min(first + length, len(words))):
            if taken[w] or len(words[w]) > room or document_ids[words[w][0]] != document_ids[words[first][0]]:
                break
            taken[w] = True
            room -= len(words[w])
        if not room:
            break
    return np.flatnonzero(taken).tolist()


def replace(
    tokens: Int64Array,
    places: Int64Array,
    shares: tuple[float, float, float],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> Int64Array:
    """A copy of the row with [MASK], a random token, or the same token at each place, in these shares."""
    mask_share, random_share, _ = shares
    draw = rng.random(len(places))
    replaced = tokens.copy()
    replaced[places[draw < mask_share]] = vocabulary.mask_id
    random = places[(draw >= mask_share) & (draw < mask_share + random_share)]
    replaced[random] = rng.choice(vocabulary.ordinary_ids, len(random))
    return replaced
