"""Words of a text and the sub-words that a tokenizer makes of them: whose answer belongs to which token."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

NO_WORD = -1
Span = tuple[int, int]


def find_words(text: str, words: list[str] | None = None) -> list[Span]:
    """Where each word stands in a text, as (begin, end) in characters.

    Args:
        words: in the order of the text; None: what stands between white space.
    Raises:
        ValueError: a word is not there behind the one before it.
    """
    if words is None:
        return [match.span() for match in re.finditer(r"\S+", text)]
    spans, at = [], 0
    for word in words:
        begin = text.find(word, at)
        if begin < 0:
            raise ValueError(f"the word {word!r} does not stand in {text[at : at + 40]!r}…")
        at = begin + len(word)
        spans.append((begin, at))
    return spans


def align(offsets: NDArray[np.int64], spans: list[Span], subwords: str) -> NDArray[np.int64]:
    """The word (its number in `spans`) of each token, `NO_WORD` where it has none.

    Args:
        offsets: (n, 2) where each token begins and ends in the text; special tokens are empty.
        subwords: `first` asks the first token of a word alone, `all` asks each.
    """
    if not spans or not len(offsets):
        return np.full(len(offsets), NO_WORD)
    begins, ends = np.array(spans).T
    # The first word that ends behind the token's begin: byte-level tokens begin with the space before their word.
    word = np.searchsorted(ends, offsets[:, 0], side="right")
    inside = (word < len(spans)) & (offsets[:, 1] > offsets[:, 0])
    inside &= begins[np.minimum(word, len(spans) - 1)] < offsets[:, 1]
    word = np.where(inside, word, NO_WORD)
    if subwords == "first":
        again = np.zeros(len(word), dtype=bool)
        again[1:] = word[1:] == word[:-1]
        word[again] = NO_WORD
    return word
