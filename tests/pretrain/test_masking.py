"""What MLM hides: a fixed number of ordinary tokens, whole words where asked, the same for the same random state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import make_tokenizer

from pretrain.objectives.masking import (
    Vocabulary,
    choose_masked,
    continues_word,
    read_vocabulary,
    replace,
    split_words,
)

SIZE = 60
SPECIAL = np.arange(SIZE) < 6
VOCABULARY = Vocabulary(SPECIAL, (np.arange(SIZE) % 3 == 0) & ~SPECIAL, mask_id=3)

rows = st.integers(0, 10**6).map(lambda seed: make_row(np.random.default_rng(seed)))
units = st.sampled_from(["token", "word", "span"])
ratios = st.floats(0.05, 0.9)


def make_row(rng):
    """Two documents with a special token at either end of each, and padding."""
    first, second, padding = rng.integers(2, 30, 3)
    tokens = rng.integers(6, SIZE, first + second + padding)
    tokens[[0, first - 1, first, first + second - 1]] = [1, 2, 1, 2]
    tokens[first + second :] = 0
    return tokens, np.repeat([1, 2, 0], [first, second, padding])


def choose(row, ratio, unit, seed=0):
    return choose_masked(*row, VOCABULARY, ratio, unit, np.random.default_rng(seed))


@settings(max_examples=200, deadline=None)
@given(row=rows, ratio=ratios, unit=units)
def test_special_tokens_and_padding_are_never_hidden(row, ratio, unit):
    tokens, document_ids = row
    places = choose(row, ratio, unit)
    assert not VOCABULARY.special[tokens[places]].any()
    assert (document_ids[places] > 0).all()
    assert (np.diff(places) > 0).all()


@settings(max_examples=200, deadline=None)
@given(row=rows, ratio=ratios, unit=units)
def test_number_of_hidden_tokens_is_fixed_by_the_row(row, ratio, unit):
    tokens, document_ids = row
    maskable = ((document_ids > 0) & ~VOCABULARY.special[tokens]).sum()
    number = max(1, round(ratio * maskable)) if maskable else 0
    hidden = len(choose(row, ratio, unit))
    assert hidden == number if unit == "token" else min(1, number) <= hidden <= number


@settings(max_examples=200, deadline=None)
@given(row=rows, ratio=ratios, unit=st.sampled_from(["word", "span"]), seed=st.integers(0, 99))
def test_words_are_hidden_whole_unless_a_single_one_is_too_long(row, ratio, unit, seed):
    tokens, document_ids = row
    places = set(choose(row, ratio, unit, seed).tolist())
    maskable = np.flatnonzero((document_ids > 0) & ~VOCABULARY.special[tokens])
    if not len(maskable):
        return
    words = split_words(maskable, tokens, document_ids, VOCABULARY)
    cut = [w for w in words if 0 < len(places & set(w.tolist())) < len(w)]
    assert not cut or (len(cut) == 1 and places < set(cut[0].tolist()))


def test_spans_are_longer_than_words():
    tokens = np.full(200, 7)  # every token a word
    document_ids = np.ones(200, dtype=np.int64)

    def runs(unit):
        places = [choose((tokens, document_ids), 0.15, unit, seed) for seed in range(40)]
        return np.mean([len(p) / (1 + (np.diff(p) > 1).sum()) for p in places])

    assert runs("word") < 1.4
    assert runs("span") > 2.2


def test_every_token_is_hidden_equally_often():
    tokens, document_ids = np.full(20, 7), np.ones(20, dtype=np.int64)
    hidden = np.concatenate([choose((tokens, document_ids), 0.3, "token", seed) for seed in range(2000)])
    share = np.bincount(hidden, minlength=20) / 2000
    assert share.min() > 0.25 and share.max() < 0.35


def test_replacement_keeps_the_shares_and_the_other_tokens():
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, SIZE, 40_000)
    places = np.arange(0, 40_000, 2)
    replaced = replace(tokens, places, (0.8, 0.1, 0.1), VOCABULARY, rng)
    assert (replaced[1::2] == tokens[1::2]).all()
    masked = (replaced[places] == 3).mean()
    same = (replaced[places] == tokens[places]).mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / 54, abs=0.01)
    others = replaced[places][(replaced[places] != 3) & (replaced[places] != tokens[places])]
    assert set(others.tolist()) == set(range(6, SIZE))


def test_all_places_can_be_masked():
    tokens = np.arange(6, 26)
    assert (replace(tokens, np.arange(20), (1, 0, 0), VOCABULARY, np.random.default_rng(0)) == 3).all()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["un", "##happi", "##ness", ",", "[MASK]"], [0, 1, 1, 0, 0]),
        (["Ġun", "happi", "ness", ",", "Ġwe", "Ċ", "s"], [0, 1, 1, 0, 0, 0, 1]),
        (["▁un", "happi", ".", "▁", "é"], [0, 1, 0, 0, 1]),
    ],
)
def test_words_are_recognised_in_the_marks_of_each_tokenizer(pieces, expected):
    assert continues_word(pieces).tolist() == [bool(e) for e in expected]


def test_vocabulary_of_our_own_tokenizer(tmp_path):
    from pretrain.encoders.text.tokenizer import open_tokenizer

    make_tokenizer(tmp_path)
    vocabulary = read_vocabulary(open_tokenizer(tmp_path), 330)
    assert vocabulary.mask_id == 3
    assert set(np.flatnonzero(vocabulary.special)) == {*range(6), *range(320, 330)}
    assert vocabulary.continues.any() and not vocabulary.continues[vocabulary.special].any()
