"""Attributes of words and of texts: aligned to sub-words, with some missing; and what is derived of images."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.objectives.attribute import Attribute, AttributeConfig
from pretrain.objectives.attribute_answers import AttributeSpec, read_lexicon
from pretrain.objectives.base import stack
from pretrain.objectives.derived_attributes import (
    GREYS,
    HUES,
    ORDERS,
    contrast,
    dominant_colour,
    edge_orientation,
    sentence_length,
    sentiment,
    shuffle_tiles,
    word_shape,
)
from pretrain.objectives.words import NO_WORD, align, find_words
from tests.text_models import make_encoder, make_tokenizer

SENTENCES = [
    ("the state of the union is strong , and", "at nn in at nn bez jj , cc"),
    ("congress asked for nothing", "nn vbd in pn"),
    ("our soldiers know it .", "pp$ nns vb ppo ."),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tagger(folder, tokenizer, sentences, **spec):
    """The objective and its data: each sentence as text, with its words' tags in JSON."""
    writer = ShardWriter(folder)
    for i, (text, tags) in enumerate(sentences):
        writer.write(str(i), {"txt": text.encode(), "json": json.dumps(tags).encode()})
    finish_dataset(writer)
    dataset = open_dataset(folder)
    specs = {"pos": AttributeSpec(**{"field": "json.tags", "of": "words", **spec})}
    objective = Attribute(AttributeConfig(attributes=specs), make_encoder("bert", tokenizer), dataset)
    return objective, [dataset[i] for i in range(len(dataset))]


def tagged(text, tags):
    return text, {"tags": [None if tag == "-" else tag for tag in tags.split()]}


def examples(objective, samples):
    return [objective.example(sample, np.random.default_rng(0)) for sample in samples]


def test_the_first_sub_word_of_each_word_is_asked_for_its_tag(tokenizer, tmp_path):
    objective, samples = tagger(tmp_path, tokenizer, [tagged(*sentence) for sentence in SENTENCES])
    classes = list(objective.answers["pos"].classes)
    for (text, tags), sample, example in zip(SENTENCES, samples, examples(objective, samples), strict=True):
        offsets = objective.encoder.offsets_of(sample)
        asked = [
            (text[offsets[i, 0] : offsets[i, 1]].strip(), classes[int(example["answer/pos"][i])])
            for i in np.flatnonzero(example["valid/pos"])
        ]
        words = text.split()
        assert [tag for _, tag in asked] == tags.split()[: len(asked)]
        assert all(word.startswith(piece) for (piece, _), word in zip(asked, words, strict=False))
        assert len(asked) == len(words) or offsets[-2, 1] < len(text), "the rest is cut"
        pieces = [text[begin:end].strip() for begin, end in offsets]
        assert len(asked) < len([piece for piece in pieces if piece]), "some word has several sub-words"


def test_missing_and_unknown_tags_are_neither_counted_nor_learned(tokenizer, tmp_path):
    sentences = [tagged("the union is strong", "at - bez jj"), ("all of them", {})]
    objective, samples = tagger(
        tmp_path, tokenizer, [*sentences, tagged("peace", "nn")], classes=("at", "bez", "nn")
    )
    batch, phase = stack(examples(objective, samples)), objective.phases()[0]
    assert objective.count(phase, batch) == 3  # at, bez; nn
    loss = objective.loss(phase, batch)
    with torch.no_grad():
        tokens = objective.encoder(batch)
        logits = objective.roles["heads"](tokens[:, 0], tokens)["pos"].double().numpy()  # (B, L, classes)
    by_hand = 0.0
    for i, places in enumerate(batch["valid/pos"].numpy()):
        for place in np.flatnonzero(places):
            row = logits[i, place]
            by_hand += np.log(np.exp(row).sum()) - row[int(batch["answer/pos"][i, place])]
    assert loss.sum.item() == pytest.approx(by_hand, rel=1e-5)
    unknown, asked = loss.metrics["pos_unknown"]
    assert (unknown.item(), asked.item()) == (1, 4)  # jj


def test_words_that_have_a_field_may_lack_white_space_between_them(tokenizer, tmp_path):
    sample = ("peace,war!", {"w": ["peace", ",", "war", "!"], "tags": ["nn", ",", "nn", "."]})
    objective, samples = tagger(tmp_path, tokenizer, [sample], words="json.w")
    (example,) = examples(objective, samples)
    assert example["valid/pos"].sum() == 4
    samples[0]["json"]["w"][2] = "peace"
    with pytest.raises(UserError, match=r"json\.w: the word 'peace' does not stand in ',?war!'"):
        examples(objective, samples)


def test_another_number_of_tags_than_words_is_refused(tokenizer, tmp_path):
    objective, samples = tagger(tmp_path, tokenizer, [tagged("the union", "at nn nn")])
    with pytest.raises(UserError, match="has 3 answers for 2 words"):
        examples(objective, samples)


@settings(max_examples=50)
@given(st.lists(st.text("ab,", min_size=1, max_size=4), max_size=6), st.randoms(use_true_random=False))
def test_alignment_gives_every_word_its_first_token_and_no_token_two_words(words, random):
    text = " ".join(words)
    cuts = sorted({0, len(text), *(random.randrange(len(text) + 1) for _ in range(len(text)))})
    offsets = np.array([(0, 0), *itertools.pairwise(cuts), (0, 0)])  # special tokens at both ends
    spans = find_words(text)
    every, first = (align(offsets, spans, which) for which in ("all", "first"))
    for (begin, end), word in zip(offsets, every, strict=True):
        inside = [w for w, (b, e) in enumerate(spans) if b < end and begin < e]
        assert word == (inside[0] if inside else NO_WORD)
    named = [w for w in first if w != NO_WORD]
    assert named == sorted(set(every) - {NO_WORD})


def test_word_shapes():
    words = "the The THE iPhone 1984 $5 -- I co-op"
    shapes = [
        "lower",
        "capitalised",
        "upper",
        "mixed",
        "number",
        "number",
        "punctuation",
        "capitalised",
        "lower",
    ]
    assert [word_shape(word) for word in words.split()] == shapes


def test_sentence_length_and_sentiment(tmp_path):
    assert sentence_length("One two three. Four!") == 2
    assert sentence_length("no end here") == 3
    assert sentence_length(" ") is None
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("# a comment\ngood\t2\t0.5\nbad\t-3\n\nwell-known\t1\n")
    scores = read_lexicon(str(lexicon))
    assert sentiment("Good, bad; WELL-KNOWN and unknown.", scores) == 0
    assert sentiment("nothing of it", scores) is None
    lexicon.write_text("good\n")
    with pytest.raises(UserError, match=r"lexicon\.txt, line 1: 'good' is no word and number"):
        read_lexicon.__wrapped__(str(lexicon))


def test_several_attributes_of_texts_at_once(tokenizer, tmp_path):
    lexicon = tmp_path / "lexicon.csv"
    lexicon.write_text("strong,2\njustice,1\n")
    _, samples = tagger(tmp_path / "data", tokenizer, [tagged(*sentence) for sentence in SENTENCES])
    config = AttributeConfig(
        attributes={
            "mood": AttributeSpec(derive="sentiment", lexicon=str(lexicon), kind="number"),
            "length": AttributeSpec(derive="sentence_length", kind="number"),
            "shape": AttributeSpec(derive="word_shape", subwords="all"),
        }
    )
    objective = Attribute(config, make_encoder("bert", tokenizer), open_dataset(tmp_path / "data"))
    batch, phase = stack(examples(objective, samples)), objective.phases()[0]
    assert batch["valid/mood"].tolist() == [1, 0, 0]
    assert batch["valid/length"].tolist() == [1, 1, 1]
    assert batch["valid/shape"].sum() > sum(len(text.split()) for text, _ in SENTENCES) / 2
    loss = objective.loss(phase, batch)
    assert loss.sum.isfinite() and {"mood_error", "length_error", "shape_accuracy"} <= loss.metrics.keys()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"derive": "sentiment", "kind": "number"}, "sentiment needs one"),
        ({"derive": "sentence_length"}, "say kind: number"),
        ({"derive": "word_shape", "kind": "binary"}, "is one of 6 classes"),
        (
            {"derive": "brightness", "kind": "number"},
            "is computed of images; this encoder sees text, of which there are",
        ),
        ({"field": "json.tags", "words": "json.w"}, "say of: words"),
        ({"derive": "word_shape", "of": "words"}, "of=words: is for a field of texts"),
        ({"field": "json.tags"}, "holds a list, not a class; of: words asks each word"),
    ],
)
def test_what_cannot_be_asked_of_words_is_refused(spec, message, tokenizer, tmp_path):
    with pytest.raises(UserError) as error:
        tagger(
            tmp_path, tokenizer, [tagged(*SENTENCES[0])], of="sample", **spec
        ) if "derive" not in spec else Attribute(
            AttributeConfig(attributes={"pos": AttributeSpec(**spec)}), make_encoder("bert", tokenizer), None
        )
    assert message in str(error.value)


def test_dominant_colours():
    def painted(*rgb):
        image = np.full((20, 20, 3), 255, np.uint8)
        image[5:15, 5:15] = rgb
        return dominant_colour(image)

    found = [painted(*rgb) for rgb in (
        (200, 0, 0), (250, 140, 0), (240, 230, 0), (0, 160, 0), (0, 220, 220), (0, 0, 255), (130, 0, 220), (255, 0, 190)
    )]  # fmt: skip
    assert found == list(HUES)
    assert painted(0, 0, 0) == "white" and painted(250, 255, 250) == "white"
    greys = [dominant_colour(np.full((9, 9, 1), value, np.uint16)) for value in (0, 30000, 65535)]
    assert greys == list(GREYS)


def test_edge_orientations_and_contrast():
    rows, columns = np.mgrid[:32, :32]
    stripes = {
        "vertical": columns, "horizontal": rows, "rising": rows + columns, "falling": rows - columns,
    }  # fmt: skip
    for name, phase in stripes.items():
        image = (np.sin(phase) * 100 + 128).astype(np.uint8)[..., None]
        assert edge_orientation(image) == name
        assert contrast(image) == pytest.approx(100 / 255 / 2**0.5, rel=0.05)
    flat = np.full((8, 8, 3), 7, np.uint8)
    assert edge_orientation(flat) is None and contrast(flat) == 0


def test_a_jigsaw_has_every_tile_once_and_its_answer_undoes_it():
    image = np.arange(2 * 7 * 6).reshape(2, 7, 6)
    seen = {shuffle_tiles(image, order).tobytes() for order in range(len(ORDERS))}
    assert len(seen) == len(ORDERS) == 24
    assert (shuffle_tiles(image, 0) == image).all()
    for order, tiles in enumerate(ORDERS):
        back = ORDERS.index(tuple(np.argsort(tiles)))
        assert (shuffle_tiles(shuffle_tiles(image, order), back) == image).all()
