"""Text encoders: documents in a row are strangers, padding is nothing, and a saved folder opens anywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from text_models import BIDIRECTIONAL, CAUSAL, FAMILIES, TEXTS, make_encoder, make_tokenizer, packed_rows
from torch import nn
from transformers import AutoModel, AutoTokenizer

from data_tools.errors import UserError
from pretrain.encoders.text.gpt2 import GPT2Encoder, GPT2EncoderConfig
from pretrain.objectives.base import stack
from pretrain.weights.from_transformers import load_encoder
from pretrain.weights.model_folder import ModelFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def other_tokens(tokens, where, vocabulary):
    """Each token at `where` replaced by the next ordinary one."""
    return torch.where(where, (tokens - 6 + 1) % (vocabulary - 6) + 6, tokens)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changed", [1, 2])
def test_other_document_changes_nothing_to_the_last_bit(family, changed, data):
    encoder = make_encoder(family, data)
    batch = packed_rows(encoder.vocab_size)
    other = {
        **batch,
        "tokens": other_tokens(batch["tokens"], batch["document_ids"] == changed, encoder.vocab_size),
    }
    before, after = encoder(batch), encoder(other)
    stays = batch["document_ids"] == 3 - changed
    assert torch.equal(before[stays], after[stays])
    assert not torch.allclose(
        before[batch["document_ids"] == changed], after[batch["document_ids"] == changed]
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_document_is_encoded_as_if_alone(family, data):
    encoder = make_encoder(family, data)
    batch = packed_rows(encoder.vocab_size, rows=1)
    second = batch["document_ids"][0] == 2
    alone = {"tokens": batch["tokens"][:, second], "position_ids": batch["position_ids"][:, second]}
    alone["document_ids"] = torch.ones_like(alone["tokens"])
    torch.testing.assert_close(encoder(batch)[:, second], encoder(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family, data):
    encoder = make_encoder(family, data)
    batch = packed_rows(encoder.vocab_size)
    other = {**batch, "tokens": torch.where(batch["document_ids"] == 0, 9, batch["tokens"])}
    real = batch["document_ids"] > 0
    assert torch.equal(encoder(batch)[real], encoder(other)[real])
    assert torch.isfinite(encoder(batch)).all()


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
def test_causal_families_do_not_see_the_future(family, data):
    encoder = make_encoder(family, data)
    batch = packed_rows(encoder.vocab_size)
    later = torch.arange(32).expand(3, -1) >= 5
    other = {**batch, "tokens": other_tokens(batch["tokens"], later, encoder.vocab_size)}
    assert torch.equal(encoder(batch)[:, :5], encoder(other)[:, :5])


@torch.no_grad()
@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_bidirectional_families_see_the_future(family, data):
    encoder = make_encoder(family, data)
    batch = packed_rows(encoder.vocab_size)
    last_of_first = torch.arange(32).expand(3, -1) == 9
    other = {**batch, "tokens": other_tokens(batch["tokens"], last_of_first, encoder.vocab_size)}
    assert (encoder(batch)[:, 0] != encoder(other)[:, 0]).any()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_gives_the_same_numbers_in_plain_transformers(family, data, tmp_path):
    encoder = make_encoder(family, data)
    encoder.save(tmp_path)
    texts = [TEXTS[0][:12], TEXTS[1][:20], TEXTS[2]]
    batch = stack([encoder.view({"__key__": str(i), "text": text}) for i, text in enumerate(texts)])
    real = batch["document_ids"] > 0
    assert not real.all(), "a test without padding proves little"
    model = AutoModel.from_pretrained(tmp_path).eval()
    theirs = model(input_ids=batch["tokens"], attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(theirs[real], encoder(batch)[real], rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], batch["tokens"])
    assert torch.equal(inputs["attention_mask"].bool(), real)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_any_transformers_folder_of_the_family_opens_as_an_encoder(family, data, tmp_path):
    encoder = make_encoder(family, data)
    encoder.save(tmp_path)
    opened = load_encoder(tmp_path).eval()
    told = {name: value for name, value in vars(encoder.config).items() if value is not None}
    assert {name: getattr(opened.config, name) for name in told} == {**told, "max_length": 64}
    batch = packed_rows(encoder.vocab_size)
    assert torch.equal(opened(batch), encoder(batch))


def test_gpt2_starts_with_smaller_projections_into_the_residual_stream(data):
    config = GPT2EncoderConfig(n_embd=128, n_layer=8, n_head=4)
    fresh = GPT2Encoder(config, data).model.h[3]
    assert float(fresh.mlp.c_proj.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert float(fresh.mlp.c_fc.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_what_follows_hold_every_parameter_but_the_embeddings(family, data):
    encoder = make_encoder(family, data)
    known = {id(p) for m in (*encoder.blocks(), *encoder.after_blocks()) for p in m.parameters()}
    rest = {name for name, p in encoder.model.named_parameters() if id(p) not in known}
    assert len(encoder.blocks()) == encoder.model.config.num_hidden_layers
    places = ("embeddings.", "embeddings_project.", "embed_tokens.", "wte.", "wpe.")
    assert rest and all(name.startswith(places) for name in rest)


@torch.no_grad()
def test_pooling_leaves_padding_out(data):
    tokens = torch.randn(2, 32, 32)
    document_ids = torch.ones(2, 32, dtype=torch.long)
    document_ids[0, 20:] = 0
    batch = {"document_ids": document_ids}
    mean, first, last = (
        make_encoder("bert", data, pooling=name).pool(tokens, batch) for name in ("mean", "first", "last")
    )
    torch.testing.assert_close(mean, torch.stack([tokens[0, :20].mean(0), tokens[1].mean(0)]))
    assert torch.equal(first, tokens[:, 0])
    assert torch.equal(last, torch.stack([tokens[0, 19], tokens[1, 31]]))


def test_vocabulary_comes_from_the_tokenizer_beside_the_data(data):
    assert make_encoder("bert", data).token_embedding.shape == (320, 32)
    assert make_encoder("bert", data, vocab_size=384).token_embedding.shape == (384, 32)
    with pytest.raises(UserError, match=r"encoder\.vocab_size=100: the tokenizer has 320 tokens"):
        make_encoder("bert", data, vocab_size=100)


def test_data_without_tokenizer_are_named(tmp_path):
    with pytest.raises(UserError, match=r"encoder\.vocab_size: unknown.*data_tools tokenize"):
        make_encoder("gpt2", ModelFolder(tmp_path))
    encoder = make_encoder("gpt2", ModelFolder(tmp_path), vocab_size=100)
    assert (
        encoder.view({"__key__": "a", "tokens": np.arange(40, dtype=np.uint16)})["document_ids"].sum() == 32
    )
    with pytest.raises(UserError, match=r"sample 'a': is text, and there is no tokenizer"):
        encoder.view({"__key__": "a", "text": "hello"})


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer that transformers opens"):
        make_encoder("bert", ModelFolder(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_longer_than_the_encoder_are_refused(family, data):
    encoder = make_encoder(family, data)
    with pytest.raises(UserError, match=r"rows of 65 tokens \(data\.sequence_length\)"):
        encoder(packed_rows(encoder.vocab_size, length=65))
    with pytest.raises(UserError, match=r"encoder\.max_length=65"):
        make_encoder(family, data, max_length=65)


def test_a_long_text_gives_windows_from_everywhere(data):
    encoder = make_encoder("bert", data)
    sample = {"__key__": "a", "tokens": np.arange(6, 106, dtype=np.uint16)}
    starts = {int(encoder.row_of(sample, np.random.default_rng(i))["tokens"][0]) for i in range(400)}
    assert min(starts) == 6 and max(starts) == 106 - 32
    assert len(starts) == 69


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_by_default(family, data):
    encoder = make_encoder(family, data).train()
    assert all(m.p == 0 for m in encoder.modules() if isinstance(m, nn.Dropout))
    batch = packed_rows(encoder.vocab_size)
    assert torch.equal(encoder(batch), encoder(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_do_not_fit_together_are_the_users_mistake(family, data):
    heads = "n_head" if family == "gpt2" else "num_attention_heads"
    with pytest.raises(UserError, match=rf"encoder \({family}\): .*heads"):
        make_encoder(family, data, **{heads: 5})
