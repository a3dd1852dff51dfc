"""Every attention back end computes the same, and none lets a document see another."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from text_models import CAUSAL, FAMILIES, make_encoder, make_tokenizer, packed_row, packed_rows
from torch.nn import functional as F
from transformers import BertConfig, ViTConfig
from transformers.integrations.flex_attention import WrappedFlexAttention

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.config.load import load_config
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.blocks import check_attention_dropout, compile_role, recompute_activations, set_attention
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.base import stack
from pretrain.objectives.clm import CLM, CLMConfig
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.ops.attention import (
    VARLEN,
    attend_by_document,
    compiled_create_block_mask,
    document_blocks,
    document_mask,
    find_document_starts,
    join_rows,
    same_document,
    window_mask,
)
from pretrain.run.run import build_objective
from pretrain.tracking.metrics import read_metrics
from tests.processes import QUIET

BACKENDS = ("sdpa", "eager", "varlen", pytest.param("flex", marks=pytest.mark.slow))  # flex compiles for long
COMPILED = "bert"
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def compile_in_one_family(request, monkeypatch):
    """Code is written by the compiler for FlexAttention in one family, half a minute each; else it only traces."""
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)  # which compiles once
    compiled_create_block_mask.cache_clear()
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if (parameters.get("backend"), parameters.get("family")) != ("flex", COMPILED):
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    compiled_create_block_mask.cache_clear()


def with_attention(encoder, backend):
    encoder = copy.deepcopy(encoder)
    set_attention(encoder, backend)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_computes_the_same_and_lets_no_document_see_another(family, backend, data):
    plain = make_encoder(family, data)
    encoder = with_attention(plain, backend)
    assert encoder.attention == {"flex": "flex_attention"}.get(backend, backend)
    batch = packed_rows(encoder.vocab_size)
    real, found = batch["document_ids"] > 0, encoder(batch)
    torch.testing.assert_close(found[real], plain(batch)[real], rtol=1e-5, atol=1e-5)
    for changed in (0, 1, 2):
        there = batch["document_ids"] == changed
        other = encoder({**batch, "tokens": torch.where(there, 9, batch["tokens"])})
        assert torch.equal(other[~there & real], found[~there & real])
        assert not torch.allclose(other[there], found[there])


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
def test_varlen_does_not_see_the_future(family, data):
    encoder = with_attention(make_encoder(family, data), "varlen")
    batch = packed_rows(encoder.vocab_size)
    tokens = batch["tokens"].clone()
    tokens[:, 5:] = 9
    assert torch.equal(encoder({**batch, "tokens": tokens})[:, :5], encoder(batch)[:, :5])


@torch.no_grad()
def test_varlen_keeps_the_window_of_local_layers(data):
    encoder = with_attention(make_encoder("modernbert", data, global_attn_every_n_layers=9), "varlen")
    for layer in encoder.blocks():  # all local now: four layers carry a token's news 4 × 4 places
        layer.attention_type, layer.attn.sliding_window = "sliding_attention", 5
    batch = packed_rows(encoder.vocab_size, padding=0, length=40)
    batch["document_ids"], batch["position_ids"] = (
        torch.ones_like(batch["document_ids"]),
        torch.arange(40).expand(3, -1),
    )
    tokens = batch["tokens"].clone()
    tokens[:, 0] = 9
    changed = (encoder({**batch, "tokens": tokens}) != encoder(batch)).any(-1).any(0)
    assert changed.nonzero().max() == 4 * 4


def gradients(encoder, batch):
    encoder(batch)[batch["document_ids"] > 0].square().sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_gradients_of_varlen_are_those_of_sdpa(family, recomputed, data):
    plain = make_encoder(family, data)
    encoder = with_attention(plain, "varlen")
    recompute_activations(encoder, recomputed)
    batch = packed_rows(encoder.vocab_size)
    expected, found = gradients(plain, batch), gradients(encoder, batch)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_varlen_computes_under_autocast(family, data):
    plain = make_encoder(family, data)
    batch = packed_rows(plain.vocab_size)
    real = batch["document_ids"] > 0
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = with_attention(plain, "varlen")(batch)[real], plain(batch)[real]
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_with_varlen_give_the_same_gradients(family, data):
    plain = make_encoder(family, data)
    encoder = with_attention(plain, "varlen")
    compile_role(encoder, "block")
    for padding in (3, 7):  # other documents, and no recompilation limit in the way
        batch = packed_rows(encoder.vocab_size, padding=padding)
        plain.zero_grad(), encoder.zero_grad()
        found = gradients(encoder, batch)
        for name, gradient in gradients(plain, batch).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_documents_begin_where_the_number_changes_and_in_each_row():
    starts = find_document_starts(SEGMENTS)
    assert starts.dtype == torch.int32 and starts.shape == (2, 4)
    joined = join_rows(starts, {"document_ids": SEGMENTS}).flatten()
    assert joined.dtype == torch.int32 and joined.unique().tolist() == [0, 3, 5, 6, 7, 10, 12]
    assert find_document_starts(torch.ones(2, 4)).tolist() == [[0, 4], [0, 4]]
    uneven = torch.tensor([[1, 1, 2, 3], [1, 1, 1, 1]])
    assert find_document_starts(uneven).tolist() == [[0, 2, 3, 4], [0, 4, 4, 4]]
    assert join_rows(find_document_starts(uneven), {"document_ids": uneven}).tolist() == [
        [[[0, 2, 3, 4, 8, 8, 8]]]
    ]


def test_the_mask_of_eager_is_added_to_the_scores():
    seen = same_document(SEGMENTS)
    added = document_mask(SEGMENTS, "eager")
    assert added.dtype == torch.float32
    assert torch.equal(added == 0, seen)
    assert torch.equal(added.softmax(-1) > 0, seen)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "causal"), [(None, False), (1, False), (None, True)])
def test_the_block_mask_sees_what_the_dense_mask_sees(window, causal):
    document_ids = torch.arange(512).expand(2, -1) // torch.tensor([[70], [90]])
    blocks = document_blocks(document_ids, window, causal)
    at = torch.arange(512)
    seen = blocks.mask_mod(torch.arange(2).view(2, 1, 1), None, at.view(512, 1), at)  # type: ignore[call-arg]
    assert torch.equal(seen.unsqueeze(1), document_mask(document_ids, "sdpa", window, causal))
    assert blocks.sparsity() > 30  # per cent of 4 × 4 blocks: only neighbours share a document


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 2)])
def test_attending_by_document_is_attention_under_a_mask_for_grouped_heads(window):
    torch.manual_seed(0)
    q, k, v = (torch.randn(12, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))  # (T, H, D)
    found = attend_by_document(
        q, k, v, join_rows(find_document_starts(SEGMENTS), {"document_ids": SEGMENTS}).flatten(), window, 0.3
    )
    seen = same_document(SEGMENTS) & window_mask(6, window, q.device)
    q, k, v = (x.unflatten(0, (2, 6)).transpose(1, 2) for x in (q, k, v))  # (B, H, L, D)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2).flatten(0, 1))


@torch.no_grad()
def test_a_model_that_nobody_tells_of_documents_attends_as_with_sdpa(data):
    encoder = make_encoder("bert", data)
    tokens = packed_rows(encoder.vocab_size)["tokens"]
    padding = torch.arange(32).expand(3, -1) < 20
    for mask in (None, padding.long()):
        expected = encoder.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        found = with_attention(encoder, "varlen").model(input_ids=tokens, attention_mask=mask)
        assert torch.equal(found.last_hidden_state, expected)


def step(objective, batch, **settings):
    """The loss and the gradient's norm of one step."""
    engine = DDPEngine(TrainConfig(**settings), World())
    engine.prepare(objective, adamw)
    (phase,) = objective.phases()
    loss = engine.backward(phase, batch, 1e-2, last=True)
    norm, _ = engine.step(phase, 1.0, None)
    return float(loss.sum), float(norm)


def adamw(_, roles):
    parameters = [p for role in roles.values() for p in role.parameters() if p.requires_grad]
    return torch.optim.AdamW([{"params": parameters, "lr_ratio": 1.0}], fused=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_a_training_step_with_varlen_is_that_with_sdpa(family, packed, data):
    encoder = make_encoder(family, data)
    objective = CLM(CLMConfig(), encoder, data) if family in CAUSAL else MLM(MLMConfig(), encoder, data)
    rng = np.random.default_rng(0)
    if packed:
        samples = [packed_row(rng, 320, 32, padding=3, first=10 + i) for i in range(3)]
    else:
        samples = [{"__key__": "a", "tokens": np.arange(6, 6 + n, dtype=np.uint16)} for n in (20, 32, 50)]
    batch = stack([objective.example(sample, rng) for sample in samples])
    expected = step(copy.deepcopy(objective), batch, attention="sdpa")
    found = step(objective, batch, attention="varlen", activation_checkpointing="full")
    assert objective.encoder.attention == VARLEN
    assert found == pytest.approx(expected, rel=1e-4)


def test_images_and_decoders_have_no_documents_and_train_on():
    config, _ = load_config("mae_digits", ["train.global_batch_size=4"])
    dataset = open_dataset("sample:digits")
    objective = build_objective(config, dataset)
    batch = stack([objective.example(dataset[i], np.random.default_rng(i)) for i in range(4)])
    plain = step(copy.deepcopy(objective), batch)
    assert step(objective, batch, attention="varlen") == plain


@pytest.mark.parametrize("recipe", ["mlm_sotu", "clm_sotu"])
def test_a_run_with_varlen_says_how_fast_it_went(recipe, tmp_path):
    main([recipe, "train.steps=2", "train.global_batch_size=4", "train.attention=varlen",
          *QUIET, "tracking.count_flops=true", "tracking.peak_tflops=0.5",
          f"run_dir={tmp_path}"])  # fmt: skip
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert lines
    for line in lines:
        assert line["tflops_per_second"] > 0
        assert line["mfu"] == pytest.approx(line["tflops_per_second"] / 0.5)


@pytest.mark.parametrize("backend", ["flex", "varlen"])
def test_dropout_of_attention_is_refused_where_a_back_end_has_none(backend):
    with pytest.raises(
        UserError, match=rf"encoder\.attention_probs_dropout_prob=0\.1: train\.attention={backend}"
    ):
        check_attention_dropout(BertConfig(attention_probs_dropout_prob=0.1), backend)
    check_attention_dropout(BertConfig(attention_probs_dropout_prob=0.1), "sdpa")
    check_attention_dropout(ViTConfig(), backend)
