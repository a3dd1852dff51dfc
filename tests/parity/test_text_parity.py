"""MLM and CLM are the published ones: the same loss and gradients as `transformers`' models at the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from text_models import BIDIRECTIONAL, CAUSAL, make_encoder, make_tokenizer, packed_row
from transformers import (
    BertForMaskedLM,
    ElectraForMaskedLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    ModernBertForMaskedLM,
)

from pretrain.objectives.base import stack
from pretrain.objectives.clm import CLM, CLMConfig
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.ops.linear_cross_entropy import IGNORE

MODELS = {
    "bert": (BertForMaskedLM, "bert"),
    "electra": (ElectraForMaskedLM, "electra"),
    "modernbert": (ModernBertForMaskedLM, "model"),
    "gpt2": (GPT2LMHeadModel, "transformer"),
    "llama": (LlamaForCausalLM, "model"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def theirs(family, encoder, head):
    """The `transformers` model with a language-modelling head, with our encoder's weights and those of `head`."""
    cls, base = MODELS[family]
    model = cls(encoder.model.config).eval()
    state = {f"{base}.{name}": value for name, value in encoder.model.state_dict().items()}
    report = model.load_state_dict({**state, **head}, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= set(model.all_tied_weights_keys)
    model.tie_weights()
    return model, {f"{base}.{name}": p for name, p in encoder.model.named_parameters()}


def mlm_head(family, head):
    """Our head's tensors by their names."""
    if family == "electra":
        mapped = {
            f"generator_predictions.{n.removeprefix('transform.')}": v for n, v in head.state_dict().items()
        }
        bias = mapped.pop("generator_predictions.bias")
        return {**mapped, "generator_lm_head.bias": bias}
    dense, norm = ("dense", "LayerNorm") if family == "bert" else ("dense", "norm")
    state, place = head.state_dict(), "cls.predictions." if family == "bert" else ""
    into = f"{place}transform." if family == "bert" else "head."
    mapped = {
        f"{into}{name.removeprefix('transform.')}": value
        for name, value in state.items()
        if name.startswith((f"transform.{dense}", f"transform.{norm}"))
    }
    bias = {"cls.predictions.bias", "cls.predictions.decoder.bias"} if family == "bert" else {"decoder.bias"}
    return {**mapped, **dict.fromkeys(bias, state["bias"])}


def examples(objective, padding):
    """Rows of one document with padding on the right: what plain models understand."""
    rng = np.random.default_rng(0)
    samples = [packed_row(rng, 320, 32, padding, first=0) for _ in range(4)]
    return stack([objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])


def compare(objective, batch, model, labels, parameters):
    phase = objective.phases()[0]
    loss = objective.loss(phase, batch).sum / objective.count(phase, batch)
    real = (batch["document_ids"] > 0).long()
    reference = model(input_ids=batch["tokens"], attention_mask=real, labels=labels).loss
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    loss.backward()
    reference.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert parameters.keys() <= gradients.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", BIDIRECTIONAL)
@pytest.mark.parametrize("padding", [0, 7])
def test_mlm_loss_and_gradients_equal_those_of_transformers(family, padding, data):
    objective = MLM(MLMConfig(), make_encoder(family, data), data)
    head = objective.roles["head"]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model, parameters = theirs(family, objective.encoder, mlm_head(family, head))
    batch = examples(objective, padding)
    labels = torch.full_like(batch["tokens"], IGNORE)
    for row in range(len(labels)):
        used = batch["target"][row] != IGNORE
        labels[row, batch["masked"][row][used]] = batch["target"][row][used]
    compare(objective, batch, model, labels, parameters)
    biases = {
        "bert": "cls.predictions.bias",
        "electra": "generator_lm_head.bias",
        "modernbert": "decoder.bias",
    }
    their_bias = dict(model.named_parameters())[biases[family]]
    torch.testing.assert_close(head.bias.grad, their_bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("padding", [0, 7])
def test_clm_loss_and_gradients_equal_those_of_transformers(family, padding, data):
    objective = CLM(CLMConfig(), make_encoder(family, data), data)
    model, parameters = theirs(family, objective.encoder, {})
    batch = examples(objective, padding)
    labels = torch.where(batch["document_ids"] > 0, batch["tokens"], IGNORE)
    compare(objective, batch, model, labels, parameters)


@pytest.mark.parametrize("family", CAUSAL)
def test_clm_loss_of_a_packed_row_is_that_of_its_documents_alone(family, data):
    objective = CLM(CLMConfig(), make_encoder(family, data), data)
    model, _ = theirs(family, objective.encoder, {})
    sample = packed_row(np.random.default_rng(0), 320, 32, padding=3, first=12)
    batch, phase = stack([objective.example(sample, np.random.default_rng(0))]), objective.phases()[0]
    alone = [
        torch.as_tensor(sample["tokens"][sample["document_ids"] == number])[None].long() for number in (1, 2)
    ]
    losses = [(model(input_ids=t, labels=t).loss * (t.shape[1] - 1)).item() for t in alone]
    assert objective.count(phase, batch) == 11 + 16
    assert objective.loss(phase, batch).sum.item() == pytest.approx(sum(losses), rel=1e-5)
